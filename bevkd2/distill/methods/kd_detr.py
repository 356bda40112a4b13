"""KD-DETR: both decoders answer the same queries (Wang et al., CVPR 2024, arXiv 2211.08071)."""

from __future__ import annotations

from typing import Any

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn

from bevkd2.distill.methods.base import DistillMethod, register_method
from bevkd2.distill.queries import (
    CODE_WEIGHTS,
    both_decoders,
    code_distance,
    code_weights,
    decode_teacher_queries,
    decoder_shapes,
    foreground_scores,
)
from bevkd2.modeling.bev.decoder import DecoderOutput
from bevkd2.modeling.detector import Detector, FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge
from bevkd2.modeling.losses import average_over_ranks
from bevkd2.ops import class_distance

_DISTANCES = ("kl", "softmax_kl")


@register_method
class KDDETR(DistillMethod[BEVKnowledge]):
    """Computes the distance of predictions for queries that both decoders get.

    Two sets of queries run through the decoders, each set on its own, so that detection is not touched: the
    general ones (GENERAL), and the teacher's own from its own initial reference points (SPECIFIC). For each
    set, with the teacher's last layer t and every layer l of the student,

    L = sum over l of sum over q of w_q * (CLS_WEIGHT * KL(t_q, l_q) + BOX_WEIGHT * L1(t_q, l_q)) / sum of w_q

    where w_q, the foreground weight, is the teacher's highest class probability and L1 the distance of box
    codes, weighted by CODE_WEIGHTS. The sum of w counts over the batch and is averaged over the processes.

    The public code (Myleswork/KD-DETR) is followed but for these points. Its KL is of softmaxes at
    temperature 10, averaged over the classes; by default ours is of sigmoids, summed over the classes,
    because the detectors classify by sigmoids. Its class term is not divided by the sum of w, which makes
    it depend on the batch. The sum of w is taken as 1 at least. Its box terms, L1 and GIoU of boxes in
    the image, have the weights of DETR's own losses; ours is BEVFormer's own L1 of box codes with its
    weight, without GIoU, which BEVFormer lacks. Reference points of the general queries are sigmoids of
    normal numbers, as there; where DAB-DETR computes the rest of the query from the point, ours are
    normal numbers with each channel's mean and deviation over the teacher's queries. They are drawn from
    the global random state, so new ones every step.

    Args:
        cfg: the method's node.
        student: the shape of its decoder is read.
        teacher: of its.

    Raises:
        ValueError: a detector without object queries, queries of different widths, or a setting that
            cannot be.
    """

    node = "KD_DETR"
    knowledge = BEVKnowledge
    requires = frozenset({"bev_embed"})
    code_weights: Tensor

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        shape, _ = decoder_shapes(
            student, teacher, self.check, shared="GENERAL" if cfg.GENERAL != "none" else "SPECIFIC"
        )
        self.general = self.one_of(cfg, "GENERAL", ("random", "learned", "none"))
        self.distance = self.one_of(cfg, "DISTANCE", _DISTANCES)
        self.count, self.specific, self.temperature = int(cfg.QUERIES), bool(cfg.SPECIFIC), cfg.TEMPERATURE
        self.check(self.specific or self.general != "none", "GENERAL", "none, and SPECIFIC is off; use one")
        self.check(
            self.count > 0, "QUERIES", f"{self.count}; expected 1 at least (GENERAL none leaves them out)"
        )
        self.check(self.temperature > 0, "TEMPERATURE", f"{self.temperature}; expected a positive number")
        self.cls_weight, self.box_weight = cfg.CLS_WEIGHT, cfg.BOX_WEIGHT
        self.register_buffer("code_weights", code_weights(cfg, self.check), persistent=False)
        if self.general == "random":
            self.requires |= {"object_queries"}
        if self.specific:
            self.requires |= {"object_queries", "decoder_reference_points", "class_logits", "box_codes"}
        if self.general == "learned":
            self.queries = nn.Parameter(torch.randn(self.count, 2 * shape.channels))
            self.points = nn.Parameter(torch.randn(self.count, 3))

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds WEIGHT, its schedule, and which queries are asked."""
        super().add_config(node)
        # General queries: "random": drawn anew every step | "learned": trained with the student | "none"
        node.GENERAL = "random"
        node.QUERIES = 300  # number of the general queries
        node.SPECIFIC = True  # the teacher's own queries too
        node.DISTANCE = "kl"  # of sigmoids | "softmax_kl" (of the public code)
        node.TEMPERATURE = 1.0  # of the KL; 10 in the public code, with softmax_kl
        node.CLS_WEIGHT = 1.0  # weight of the KL
        node.BOX_WEIGHT = 0.25  # weight of the L1 of the box codes
        node.CODE_WEIGHTS = list(CODE_WEIGHTS)  # ten factors of the L1 terms

    def attach(self, student: Detector[Any, Any, Any], teacher: Detector[Any, Any, Any]) -> None:
        """Keeps the detectors, whose decoders run.

        Raises:
            ValueError: detectors of another kind, or with different classes.
        """
        super().attach(student, teacher)
        self._detectors = both_decoders(student, teacher, self.check)

    def forward(self, student: BEVKnowledge, teacher: BEVKnowledge, targets: Any) -> dict[str, Tensor]:
        """Returns the losses of classes and of boxes."""
        learner, _ = self._detectors
        losses = []
        if self.general != "none":
            losses.append(self._ask(student, teacher))
        if self.specific:
            logits, codes = teacher.filled("class_logits")[-1], teacher.filled("box_codes")[-1]
            losses.append(self._compare(decode_teacher_queries(learner, student, teacher), logits, codes))
        classes, boxes = (sum(terms) for terms in zip(*losses, strict=True))
        return {"kd_detr_cls": self.cls_weight * classes, "kd_detr_box": self.box_weight * boxes}

    def _ask(self, student: BEVKnowledge, teacher: BEVKnowledge) -> tuple[Tensor, Tensor]:
        """Returns the two losses of the general queries."""
        learner, expert = self._detectors
        queries, points = self._general_queries(teacher)
        points = points.sigmoid().expand(len(student.filled("bev_embed")), -1, -1)
        with torch.no_grad():
            theirs = expert.decode(teacher, queries.detach(), points.detach())
        ours = learner.decode(student, queries, points)
        return self._compare(ours, theirs.class_logits[-1], theirs.box_codes[-1])

    def _general_queries(self, teacher: BEVKnowledge) -> tuple[Tensor, Tensor]:
        """Returns (n, 2C) queries and (n, 3) logits of their reference points."""
        if self.general == "learned":
            return self.queries, self.points
        own: Tensor = teacher.filled("object_queries").detach().flatten(0, -2)
        std, mean = torch.std_mean(own, dim=0, correction=0)
        drawn = torch.randn(self.count, own.shape[-1], device=own.device, dtype=own.dtype)
        points = torch.randn(self.count, 3, device=own.device)
        return mean + std * drawn, points

    def _compare(self, ours: DecoderOutput, logits: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Compares every layer of the student with the teacher's last one."""
        weights = foreground_scores(logits.float())
        share = weights / average_over_ranks(weights.sum(), weights.device)
        logits, codes = logits.expand_as(ours.class_logits), codes.expand_as(ours.box_codes)
        distances = class_distance(
            ours.class_logits,
            logits,
            "softmax_kl" if self.distance == "softmax_kl" else "kl",
            self.temperature,
        )
        boxes = code_distance(ours.box_codes.float(), codes.float(), self.code_weights)
        return (share * distances).sum(), (share * boxes).sum()
