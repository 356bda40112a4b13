"""DETRDistill (Chang et al., ICCV 2023, arXiv 2211.10156)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.feature import FeatureMethod
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
from bevkd2.modeling.bev.box_coder import decode_codes
from bevkd2.modeling.bev.criterion import SetCriterion, SetWeights
from bevkd2.modeling.bev.inputs import BEVTargets
from bevkd2.modeling.detector import Detector, FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge, Knowledge
from bevkd2.modeling.losses import average_over_ranks
from bevkd2.ops import class_distance, rotated_iou, weighted_l2

_SMALLEST_WEIGHT = 1e-2  # of a cell before the division by the largest, as released
_LARGEST_LOG_SIZE = 6.0  # of the teacher's boxes: 400 m

Matches = list[list[tuple[Tensor, Tensor]]]


@register_method
class DETRDistill(FeatureMethod):
    """Computes three losses: Hungarian logits, target-aware features and the query prior.

    Logits: per decoder layer the teacher's queries are matched one to one with the student's. Queries of the
    teacher that its own matching gives an object are positive; of the others the NEGATIVES most confident
    count. Summed over the layers,

    L_logits = mean over positive pairs of (CLS_WEIGHT * KL + BOX_WEIGHT * L1) + CLS_WEIGHT * mean over
    negative pairs of KL

    with the KL of sigmoids, summed over the classes, and L1 of box codes weighted by CODE_WEIGHTS. The pairs
    count over the batch; the counts are averaged over the processes.

    Features: per decoder layer a cell weighs m = sum over the TOP_QUERIES most confident pairs of query and
    class of q * cos(query, cell), with the teacher's decoder states and features, at least 0.01 and divided
    by the largest of the sample; q is the score times the largest IoU with an object, or the score where a
    sample has none. L_features = FEATURE_WEIGHT * sum over the layers of mean((m * (F_s - F_t))^2).

    Query prior (PRIOR): the teacher's queries run through the student's decoder as a group of its own, whose
    detection losses use the teacher's assignment of objects.

    It follows the released code but for these points. There all pairs count alike; positives and negatives
    are the paper's. Its soft cross-entropy is a KL here: the same gradient, and 0 for a perfect student.
    The cost of a match takes the teacher's most probable class. GIoU is left out, which BEVFormer lacks,
    and the L1 has BEVFormer's weight in place of DETR's. Features are the bird's-eye view, of which there
    is one level, and IoU is that of rotated boxes on the ground.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: detectors without object queries, queries of different widths with PRIOR, sources that are
            not on the BEV grid or that the two do not share, or a setting that cannot be.
    """

    node = "DETR_DISTILL"
    sources_default = ("bev",)
    adapter_default = "auto"
    code_weights: Tensor

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        for source in self.sources:
            self.check(
                source.plane == "bev",
                "SOURCES",
                f"{source.name}; expected bev, bev.layers, bev.temporal or bev.spatial, in which the "
                "decoder's queries have their objects",
            )
        self.prior = bool(cfg.PRIOR)
        shapes = decoder_shapes(student, teacher, self.check, shared="PRIOR" if self.prior else "")
        self.layers, self.teacher_layers = decoder_layers(
            *shapes, cfg.DECODER_LAYER_MAP, self.check, "DECODER_LAYER_MAP"
        )
        self.negatives, self.top_queries = int(cfg.NEGATIVES), int(cfg.TOP_QUERIES)
        self.check(self.negatives >= 0, "NEGATIVES", f"{self.negatives}; expected 0 (none) or more")
        self.check(self.top_queries > 0, "TOP_QUERIES", f"{self.top_queries}; expected 1 at least")
        self.cls_weight, self.box_weight = cfg.CLS_WEIGHT, cfg.BOX_WEIGHT
        self.feature_weight = cfg.FEATURE_WEIGHT
        weights = SetWeights(cfg.FOCAL_WEIGHT, self.box_weight, cfg.FOCAL_ALPHA, cfg.FOCAL_GAMMA)
        self.register_buffer("code_weights", code_weights(cfg, self.check), persistent=False)
        self.criterion = SetCriterion(weights, list(cfg.CODE_WEIGHTS))
        self.requires |= {"class_logits", "box_codes", "decoder_states", "bev_embed"}
        if self.prior:
            self.requires |= {"object_queries", "decoder_reference_points"}

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods, and those of the three losses."""
        super().add_config(node)
        node.DECODER_LAYER_MAP = []  # pairs of decoder layers, as LAYER_MAP pairs encoder layers
        node.NEGATIVES = 100  # most confident queries without an object whose classes are learned, per sample
        node.CLS_WEIGHT = 1.0  # weight of the KL of classes
        node.BOX_WEIGHT = 0.25  # weight of the L1 of box codes, in the costs and the query prior too
        node.CODE_WEIGHTS = list(CODE_WEIGHTS)  # ten factors of the L1 terms
        node.FEATURE_WEIGHT = 1.0  # weight of the target-aware features
        node.TOP_QUERIES = 100  # pairs of query and class whose states weigh the cells
        node.PRIOR = True  # the teacher's queries and its assignment, in the student's decoder
        node.FOCAL_WEIGHT = 2.0  # weight of the focal cost, and of the focal loss of the query prior
        node.FOCAL_ALPHA = 0.25  # of both
        node.FOCAL_GAMMA = 2.0  # of both

    def attach(self, student: Detector[Any, Any, Any], teacher: Detector[Any, Any, Any]) -> None:
        """Keeps the student, whose decoder runs.

        Raises:
            ValueError: detectors of another kind, or with different classes.
        """
        super().attach(student, teacher)
        self._detectors = both_decoders(student, teacher, self.check)

    def forward(self, student: Knowledge, teacher: Knowledge, targets: BEVTargets) -> dict[str, Tensor]:
        """Returns the losses."""
        assert isinstance(student, BEVKnowledge) and isinstance(teacher, BEVKnowledge)
        theirs = (
            teacher.filled("class_logits")[self.teacher_layers].detach().float(),
            teacher.filled("box_codes")[self.teacher_layers].detach().float(),
        )
        assigned = self.criterion.matcher(*theirs, targets.labels, targets.codes)
        losses = {
            "detr_distill_logits": self._logits(student, theirs, assigned),
            "detr_distill_features": self._features(student, teacher, theirs, targets),
        }
        if self.prior:
            decoded = decode_teacher_queries(self._detectors[0], student, teacher)
            prior = self.criterion.losses_of_matches(
                decoded.class_logits[self.layers],
                decoded.box_codes[self.layers],
                targets.labels,
                targets.codes,
                assigned,
            )
            losses["detr_distill_prior"] = torch.stack(list(prior.values())).sum()
        return losses

    def _logits(self, student: BEVKnowledge, theirs: tuple[Tensor, Tensor], assigned: Matches) -> Tensor:
        ours = student.filled("class_logits")[self.layers], student.filled("box_codes")[self.layers]
        positive = torch.zeros_like(theirs[0][..., 0], dtype=torch.bool)
        for layer, samples in enumerate(assigned):
            for sample, (queries, _) in enumerate(samples):
                positive[layer, sample, queries] = True
        scores = foreground_scores(theirs[0]).masked_fill(positive, -1.0)
        best = scores.topk(min(self.negatives, scores.shape[-1]), dim=-1).indices
        negative = torch.zeros_like(positive).scatter(2, best, True) & ~positive

        mine, yours = match_queries(self.criterion.matcher, ours, theirs)
        positive, negative = positive.gather(2, yours), negative.gather(2, yours)
        classes = class_distance(take_queries(ours[0], mine).float(), take_queries(theirs[0], yours), "kl")
        codes = take_queries(ours[1], mine).float(), take_queries(theirs[1], yours)
        boxes = code_distance(*codes, self.code_weights)
        classes, boxes = self.cls_weight * classes, self.box_weight * boxes
        return _mean_of(classes + boxes, positive) + _mean_of(classes, negative)

    def _features(
        self,
        student: BEVKnowledge,
        teacher: BEVKnowledge,
        theirs: tuple[Tensor, Tensor],
        targets: BEVTargets,
    ) -> Tensor:
        pairs = self.pairs(student, teacher)
        states = [teacher.filled("decoder_states")[layer] for layer in self.teacher_layers]
        weighted = [
            self._weighted_queries(state.float(), logits, codes, targets.grid_boxes())
            for state, logits, codes in zip(states, *theirs, strict=True)
        ]
        losses = []
        for ours, pair in zip(self.adapted(pairs), pairs, strict=True):
            directions = F.normalize(pair.teacher.float(), dim=1)
            masks = [torch.einsum("bc,bchw->bhw", query, directions) for query in weighted]
            masks = [mask.clamp(min=_SMALLEST_WEIGHT) for mask in masks]
            squares = [(mask / mask.amax((1, 2), keepdim=True)).square() for mask in masks]
            scale = pair.teacher.new_full((1, len(ours)), 1 / pair.teacher.numel(), dtype=torch.float32)
            losses.append(
                weighted_l2([ours], [pair.teacher], scale, weights=[torch.stack(squares).sum(0)])[0]
            )
        weighted_sum: Tensor = self.feature_weight * torch.stack(losses).sum()
        return weighted_sum

    @torch.no_grad()
    def _weighted_queries(
        self, states: Tensor, logits: Tensor, codes: Tensor, objects: Sequence[Tensor]
    ) -> Tensor:
        """Returns (B, C): the sum of the normalised states of the most confident predictions, by quality.

        Args:
            states: (B, Q, C).
            logits: (B, Q, K).
            codes: (B, Q, 10).
            objects: B tensors (n, 5).
        """
        classes = logits.shape[-1]
        count = min(self.top_queries, logits[0].numel())
        scores, flat = logits.sigmoid().flatten(1).topk(count, dim=1)
        queries = torch.div(flat, classes, rounding_mode="floor")
        directions = F.normalize(states, dim=-1)
        sums = []
        for sample, boxes in enumerate(objects):
            chosen, quality = queries[sample], scores[sample]
            if len(boxes):
                quality = quality * rotated_iou(_on_ground(codes[sample, chosen]), boxes).amax(1)
            sums.append((quality[:, None] * directions[sample, chosen]).sum(0))
        return torch.stack(sums)


def _on_ground(codes: Tensor) -> Tensor:
    """Maps box codes (n, 10) to (n, 5) x, y, length, width in metres and yaw."""
    sizes = codes[:, 2:6].clamp(max=_LARGEST_LOG_SIZE)
    boxes = decode_codes(
        torch.cat([codes[:, :2], sizes[:, :2], codes[:, 4:5], sizes[:, 3:], codes[:, 6:]], dim=1)
    )
    return torch.cat([boxes.center[:, :2], boxes.size[:, :2], boxes.yaw[:, None]], dim=1)


def _mean_of(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the sum over the layers of the mean of (L, B, n) values where the mask is true."""
    counts = average_over_ranks(mask.sum((1, 2)), mask.device)
    loss: Tensor = (torch.where(mask, values, 0).sum((1, 2)) / counts).sum()
    return loss
