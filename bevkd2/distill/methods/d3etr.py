"""D3ETR: matched and fixed pairs of decoder queries (Chen et al., arXiv 2211.09768)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.methods.base import DistillMethod, register_method
from bevkd2.distill.queries import (
    CODE_WEIGHTS,
    both_decoders,
    code_distance,
    code_weights,
    decode_teacher_queries,
    decoder_layers,
    decoder_shapes,
    foreground_scores,
    match_queries,
    take_queries,
)
from bevkd2.modeling.bev.criterion import HungarianMatcher, SetWeights
from bevkd2.modeling.detector import Detector, FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge
from bevkd2.modeling.losses import average_over_ranks


@register_method
class D3ETR(DistillMethod[BEVKnowledge]):
    """Computes the distance of the two decoders' predictions, query by query (MixMatcher).

    Adaptive matching (MATCHED) pairs the two models' queries one to one in every layer, by the
    detector's own cost with the teacher's predictions as objects. Fixed matching (FIXED) runs the teacher's
    queries through the student's decoder, as a group of its own, from the teacher's initial reference points;
    each is compared with itself. For both, per layer and summed over the layers, over pairs of a student's
    query s and a teacher's t,

    L = sum of (CLS_WEIGHT * |p_s - p_t|^gamma * BCE(p_s, p_t) + BOX_WEIGHT * w_t * L1(s, t)) / sum of w_t

    with p the classes' probabilities, summed over the classes, w_t the teacher's highest probability and L1
    the distance of box codes weighted by CODE_WEIGHTS. The sum of w_t, a soft count of objects, counts over
    the batch, is averaged over the processes, and is 1 at least.

    No released code was found. The weights are those of the detector's own losses, here BEVFormer's. Ours
    are the soft count as divisor, and w_t at the boxes, since boxes of queries without an object mean
    nothing. Left out: GIoU, which BEVFormer lacks, and the distillation of the decoder's self- and cross-
    attention maps, which the knowledge does not hold (its cross-attention is deformable and has no such
    map). The optimal assignment of all queries takes CPU time that grows with their cube; QUERIES bounds
    it.

    Args:
        cfg: the method's node.
        student: the shape of its decoder is read.
        teacher: of its.

    Raises:
        ValueError: a detector without object queries, queries of different widths with FIXED, or a
            setting that cannot be.
    """

    node = "D3ETR"
    knowledge = BEVKnowledge
    requires = frozenset({"class_logits", "box_codes"})
    code_weights: Tensor

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.matched, self.fixed = bool(cfg.MATCHED), bool(cfg.FIXED)
        self.check(self.matched or self.fixed, "MATCHED", "off, and FIXED is off; use one")
        self.count = int(cfg.QUERIES)
        self.check(self.count >= 0, "QUERIES", f"{self.count}; expected 0 (all) or a number of queries")
        shapes = decoder_shapes(student, teacher, self.check, shared="FIXED" if self.fixed else "")
        self.layers, self.teacher_layers = decoder_layers(*shapes, cfg.LAYER_MAP, self.check)
        self.cls_weight, self.box_weight, self.gamma = cfg.CLS_WEIGHT, cfg.BOX_WEIGHT, cfg.FOCAL_GAMMA
        self.check(self.gamma >= 1, "FOCAL_GAMMA", f"{self.gamma}; expected 1 at least")
        weights = SetWeights(self.cls_weight, self.box_weight, cfg.FOCAL_ALPHA, self.gamma)
        self.matcher = HungarianMatcher(weights)
        self.register_buffer("code_weights", code_weights(cfg, self.check), persistent=False)
        if self.fixed:
            self.requires |= {"bev_embed", "object_queries", "decoder_reference_points"}

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds WEIGHT, its schedule, and the two matchings."""
        super().add_config(node)
        node.MATCHED = True  # optimal pairs of the student's and the teacher's queries
        node.FIXED = True  # the teacher's queries through the student's decoder
        node.QUERIES = 0  # how many of the teacher's queries, its most confident, are matched; 0: all
        node.LAYER_MAP = []  # [[student layer, teacher layer], ...]; []: spread evenly
        node.CLS_WEIGHT = 2.0  # weight of the classes, in the cost too
        node.BOX_WEIGHT = 0.25  # weight of the box codes, in the cost too
        node.CODE_WEIGHTS = list(CODE_WEIGHTS)  # ten factors of the L1 terms; the cost has no velocity
        node.FOCAL_ALPHA = 0.25  # of the focal cost of the matching
        node.FOCAL_GAMMA = 2.0  # of the cost and of the loss

    def attach(self, student: Detector[Any, Any, Any], teacher: Detector[Any, Any, Any]) -> None:
        """Keeps the student, whose decoder runs.

        Raises:
            ValueError: detectors of another kind, or with different classes.
        """
        super().attach(student, teacher)
        self._detectors = both_decoders(student, teacher, self.check)

    def forward(self, student: BEVKnowledge, teacher: BEVKnowledge, targets: Any) -> dict[str, Tensor]:
        """Returns the losses of both matchings."""
        theirs = (
            teacher.filled("class_logits")[self.teacher_layers],
            teacher.filled("box_codes")[self.teacher_layers],
        )
        losses = {}
        if self.matched:
            ours = student.filled("class_logits")[self.layers], student.filled("box_codes")[self.layers]
            chosen = self._most_confident(theirs)
            mine, yours = match_queries(self.matcher, ours, chosen)
            logits, codes = (take_queries(values, mine) for values in ours)
            logits_t, codes_t = (take_queries(values, yours) for values in chosen)
            losses["d3etr_matched"] = self._compare((logits, codes), (logits_t, codes_t))
        if self.fixed:
            decoded = decode_teacher_queries(self._detectors[0], student, teacher)
            ours = decoded.class_logits[self.layers], decoded.box_codes[self.layers]
            losses["d3etr_fixed"] = self._compare(ours, theirs)
        return losses

    def _most_confident(self, theirs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        logits, codes = theirs
        if not 0 < self.count < logits.shape[2]:
            return theirs
        best = foreground_scores(logits).topk(self.count, dim=2).indices
        return take_queries(logits, best), take_queries(codes, best)

    def _compare(self, ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> Tensor:
        """Compares (L, B, n, K) logits and (L, B, n, 10) codes, row by row."""
        (logits, codes), (logits_t, codes_t) = ours, theirs
        logits, target = logits.float(), logits_t.detach().float().sigmoid()
        weights = target.amax(-1)
        objects = average_over_ranks(weights.sum((1, 2)), weights.device)
        focus = (logits.sigmoid() - target).abs().pow(self.gamma)
        with torch.autocast(logits.device.type, enabled=False):
            entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        classes = (focus * entropy).sum((1, 2, 3))
        boxes = (weights * code_distance(codes.float(), codes_t.float(), self.code_weights)).sum((1, 2))
        loss: Tensor = ((self.cls_weight * classes + self.box_weight * boxes) / objects).sum()
        return loss
