"""DeFeat: decoupled imitation of objects and background (Guo et al., CVPR 2021, arXiv 2103.14475)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn

from bevkd2.distill.masks import MaskKind, draw_masks
from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.dense import check_same_locations, class_losses, content_of_locations, with_head
from bevkd2.distill.methods.feature import FeatureMethod, summed_distance
from bevkd2.distill.sources import FeaturePair, FeatureSource
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge, MonoKnowledge
from bevkd2.modeling.losses import average_over_ranks
from bevkd2.ops import Distance


@register_method
class DeFeat(FeatureMethod):
    """Computes the distance of features and of class predictions, apart in objects and in the background.

    features = mean over the maps of a / (2 C N_fg) sum M d^2 + b / (2 C N_bg) sum (1 - M) d^2 (Eq. 3), with d
    = f(F_s) - F_t, M the mask of the objects' boxes and N its cells in the batch of all processes. On the
    neck an object is on the level of its size alone (the rule of FPN), and counts as background on the
    others; a backbone's stage has all objects, drawn at the stride of the neck's finest level. The two kinds
    of maps have weights of their own. head = a / N_pos sum of KL at the objects' locations + b / N_neg sum of
    KL at the others (Eq. 4 and 5).

    Deviations: padding is no background. The published head compares softmaxed proposals of a two-stage
    detector; here they are the locations of a dense one, and since its classes are independent, the KL is of
    sigmoids (CLASS_DISTANCE softmax_kl is the published one). Weights are those published for Faster R-CNN on
    VOC. Detectors of object queries, which do not correspond, have no head loss.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: sources that the two do not share, channels that differ without an adapter, or HEAD on for
            detectors that are not dense.
    """

    node = "DEFEAT"
    adapter_default = "conv3x3"
    adapter_std = 1e-4

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.with_head = with_head(type(self), cfg, student, teacher)
        self.distance: Distance = self.one_of(cfg, "CLASS_DISTANCE", get_args(Distance))
        self.check(cfg.TEMPERATURE > 0, "TEMPERATURE", f"{cfg.TEMPERATURE}; expected a positive number")
        self.temperature = float(cfg.TEMPERATURE)
        self.neck_weights = float(cfg.FOREGROUND_WEIGHT), float(cfg.BACKGROUND_WEIGHT)
        self.backbone_weights = (
            float(cfg.BACKBONE_FOREGROUND_WEIGHT),
            float(cfg.BACKBONE_BACKGROUND_WEIGHT),
        )
        self.class_weights = float(cfg.CLASS_FOREGROUND_WEIGHT), float(cfg.CLASS_BACKGROUND_WEIGHT)
        self.finest_stride = int(student.fpn[0].stride or 1) if student.fpn else 1
        if self.with_head:
            self.knowledge = MonoKnowledge
            self.requires = self.requires | {"logits", "grid"}

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods and the weights of foregrounds and backgrounds."""
        super().add_config(node)
        node.FOREGROUND_WEIGHT = 3.0  # of the neck's maps, and of BEV grids
        node.BACKGROUND_WEIGHT = 12.0  # of the same maps
        node.BACKBONE_FOREGROUND_WEIGHT = 2.0  # of the backbone's stages
        node.BACKBONE_BACKGROUND_WEIGHT = 5.0  # of the same stages
        node.HEAD = "auto"  # class predictions: "on" | "off" | "auto": on for dense detectors
        node.CLASS_FOREGROUND_WEIGHT = 2.0  # of the class predictions at objects' locations
        node.CLASS_BACKGROUND_WEIGHT = 2.0  # of those at the others
        node.CLASS_DISTANCE = "kl"  # of sigmoids | "softmax_kl" | "l2" | "l2_logits"
        node.TEMPERATURE = 1.0  # of the KLs

    def make_adapter(self, kind: str, source: FeatureSource) -> nn.Module:
        """Makes a convolution; a backbone's stage, which ends in a ReLU, has one after it, as published."""
        adapter = super().make_adapter(kind, source)
        if source.field == "backbone" and not isinstance(adapter, nn.Identity):
            return nn.Sequential(adapter, nn.ReLU())
        return adapter

    def forward(self, student: Knowledge, teacher: Knowledge, targets: Any) -> dict[str, Tensor]:
        """Returns the losses of features and of class predictions."""
        losses = {"defeat_features": self.compare(self.pairs(student, teacher), student, targets)}
        if self.with_head:
            assert isinstance(student, MonoKnowledge) and isinstance(teacher, MonoKnowledge)
            check_same_locations(self.node, student, teacher)
            losses["defeat_head"] = class_losses(
                student,
                teacher,
                targets.assignment() >= 0,
                content_of_locations(student),
                self.distance,
                self.temperature,
                self.class_weights,
            )
        return losses

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> Tensor:
        """Returns the loss of the features."""
        ours, theirs = self.adapted(pairs), [pair.teacher for pair in pairs]
        shapes = [pair.shape for pair in pairs]
        masks = [self._masks(kind, shapes, student, targets) for kind in ("foreground", "background")]
        cells = torch.stack([mask.sum(dtype=torch.float32) for kind in masks for mask in kind])
        counts = average_over_ranks(cells, cells.device).view(2, -1)
        backbone = [source.field == "backbone" for source in self.sources]
        weights = []
        for i, features in enumerate(ours):
            share = 1 / (2 * features.shape[1] * backbone.count(backbone[i]))
            factors = self.backbone_weights if backbone[i] else self.neck_weights
            inside, outside = (
                mask[i] * (factor * share / count[i])
                for mask, factor, count in zip(masks, factors, counts, strict=True)
            )
            weights.append(inside + outside)
        return summed_distance(ours, theirs, [1.0] * len(ours), weights)

    def _masks(
        self, kind: MaskKind, shapes: Sequence[tuple[int, int]], student: Knowledge, targets: Any
    ) -> list[Tensor]:
        """Returns (R, h, w) of every map."""
        drawn = [self._drawn_at(source, shape) for source, shape in zip(self.sources, shapes, strict=True)]
        masks = draw_masks(
            [source for source, _ in drawn],
            [shape for _, shape in drawn],
            student,
            targets,
            kind,
            rounding="truncated",
            one_level=True,
        )
        return [
            mask if mask.shape[1:] == shape else F.interpolate(mask[:, None], size=shape)[:, 0]
            for mask, shape in zip(masks, shapes, strict=True)
        ]

    def _drawn_at(
        self, source: FeatureSource, shape: tuple[int, int]
    ) -> tuple[FeatureSource, tuple[int, int]]:
        """Returns where a map's mask is drawn: a backbone's stage has that of the neck's finest level."""
        if source.field != "backbone" or source.stride is None:
            return source, shape
        rows, columns = (-(-size * source.stride // self.finest_stride) for size in shape)
        return dataclasses.replace(source, stride=self.finest_stride), (rows, columns)
