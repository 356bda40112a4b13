"""Imitation of the bird's-eye view (FocalDistiller's baseline, CVPR 2023; DistillBEV, arXiv 2309.15109)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn

from bevkd2.config import CfgNode
from bevkd2.distill.masks import draw_masks
from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.feature import FeatureMethod, spatial_attention
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.bev.box_coder import decode_codes
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge, Knowledge
from bevkd2.ops import weighted_l2
from bevkd2.ops.precision import widen

_MASKS = ("gaussian", "foreground", "adaptive", "none")


@register_method
class BEVFeature(FeatureMethod):
    """Computes the squared distance of BEV features, weighted by where the objects are.

    ``d^2`` is the squared distance of two cells, summed over the channels. For every sample, with MASK

    - gaussian: sum of H d^2 / sum of H, H the Gaussians of the annotated boxes. This is the published
      baseline of FocalDistiller, HeatmapDistiller, with its weight of 0.1. Its code draws CenterNet's
      Gaussians of 10 classes and takes their maximum, and multiplies both features, so that H counts squared;
      here the Gaussians follow the turned boxes (see :mod:`bevkd2.ops.pixel_weights`), and H counts once, as
      in the formula.
    - foreground: the same with H = 1 in the boxes.
    - none: the mean over all cells.
    - adaptive: DistillBEV's, Eq. 1 to 6, in the form of its code. The sum of A (a F + b B + c P) d^2: F is
      1 / sqrt(area of the box in cells) in the boxes; P is 1 / (number of cells) in the boxes that the
      teacher predicts where nothing is annotated, its false positives; B is the same in the rest. A is the
      teacher's spatial attention, (number of cells) * softmax(mean over channels of its absolute features /
      T). A second loss, ``bev_feature_attention``, is the sum over the cells of the absolute distance of the
      features' means over channels, the student's after a 3x3 convolution of its own. The weights a, b, c, T
      and that of the second loss are the published ones (ADAPTIVE); set WEIGHT to 1 with them. Deviations:
      the convolution begins as the identity, so that the loss measures the features from the first step; the
      channel attention, which the code applies to P only, is left out.

    Maps and samples are averaged. A sample without objects has no loss (gaussian, foreground). The adaptive
    mask with false positives runs the teacher's decoder.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: sources that are no bird's-eye view or that the two do not share, channels that differ
            without an adapter, or a setting that cannot be.
    """

    node = "BEV_FEATURE"
    sources_default = ("bev",)
    adapter_default = "auto"

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        images = [source.name for source in self.sources if source.plane == "image"]
        self.check(
            not images,
            "SOURCES",
            f"{', '.join(images)} lies in images; expected bev, bev.layers, bev.temporal or bev.spatial",
        )
        self.mask = self.one_of(cfg, "MASK", _MASKS)
        self.alpha = float(cfg.GAUSSIAN_ALPHA)
        self.check(self.alpha > 0, "GAUSSIAN_ALPHA", f"{self.alpha}; expected a number above 0")
        if self.mask == "adaptive":
            self.adaptive = cfg.ADAPTIVE
            temperature = self.adaptive.TEMPERATURE
            self.check(temperature > 0, "ADAPTIVE.TEMPERATURE", f"{temperature}; expected a number above 0")
            self.attention_adapters = nn.ModuleList(_identity_convolution() for _ in self.sources)
            if self.adaptive.FALSE_POSITIVE_WEIGHT:
                self.requires = self.requires | {"logits", "box_codes"}

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods, with HeatmapDistiller's weight, MASK and its settings."""
        super().add_config(node)
        node.WEIGHT = 0.1  # as published; multiplied by DISTILL.FACTOR, which was 1
        # "gaussian" (HeatmapDistiller) | "foreground" | "adaptive" (DistillBEV; with it WEIGHT 1.0) | "none"
        node.MASK = "gaussian"
        node.GAUSSIAN_ALPHA = 1.0  # width of the Gaussians: a box's sides are at 3 / alpha deviations
        adaptive = node.ADAPTIVE = CfgNode()
        adaptive.FOREGROUND_WEIGHT = 3e-3  # of the cells in annotated boxes
        adaptive.BACKGROUND_WEIGHT = 4e-2  # of the cells in no box
        adaptive.FALSE_POSITIVE_WEIGHT = 6e-2  # of the cells in predicted boxes only; 0: they are background
        adaptive.FALSE_POSITIVE_SCORE = 0.1  # score above which a prediction of the teacher counts
        adaptive.ATTENTION_WEIGHT = 1e-3  # of the second loss
        adaptive.TEMPERATURE = 0.5  # of the softmax in the teacher's spatial attention

    def forward(self, student: Knowledge, teacher: Knowledge, targets: Any) -> Tensor | dict[str, Tensor]:
        """Compares the maps of all sources."""
        pairs = self.pairs(student, teacher)
        if self.mask == "adaptive":
            return self._adaptive(pairs, student, teacher, targets)
        if self.mask == "none":
            weights = None
            scale = torch.tensor([[1 / math.prod(pair.shape)] * len(pair.teacher) for pair in pairs])
            scale = scale.to(pairs[0].student.device, non_blocking=True)
        else:
            weights = self._masks(pairs, student, targets, self.mask)
            scale = torch.stack([1 / mask.sum(dim=(1, 2)).clamp(min=1) for mask in weights])
        return self._distance(pairs, self.adapted(pairs), weights, scale)

    def _adaptive(
        self, pairs: Sequence[FeaturePair], student: Knowledge, teacher: Knowledge, targets: Any
    ) -> dict[str, Tensor]:
        weights = self._region_weights(pairs, student, teacher, targets)
        ours = self.adapted(pairs)
        scale = weights[0].new_ones(len(pairs), len(ours[0]))
        attention = [
            _attention_distance(features, pair.teacher, adapter)
            for features, pair, adapter in zip(ours, pairs, self.attention_adapters, strict=True)
        ]
        return {
            "bev_feature": self._distance(pairs, ours, weights, scale),
            "bev_feature_attention": self.adaptive.ATTENTION_WEIGHT * torch.stack(attention).mean(),
        }

    def _region_weights(
        self, pairs: Sequence[FeaturePair], student: Knowledge, teacher: Knowledge, targets: Any
    ) -> list[Tensor]:
        """Returns A (a F + b B + c P) of every map, (R, h, w)."""
        settings = self.adaptive
        areas = self._masks(pairs, student, targets, "foreground", normalize=True)
        false_positives: Sequence[Tensor] = [torch.zeros_like(area) for area in areas]
        if settings.FALSE_POSITIVE_WEIGHT:
            predicted = _PredictedBoxes.of(teacher, settings.FALSE_POSITIVE_SCORE)
            false_positives = self._masks(pairs, student, predicted, "foreground")
        weights = []
        for pair, area, false_positive in zip(pairs, areas, false_positives, strict=True):
            inside = (area > 0).float()
            only_predicted = false_positive * (1 - inside)
            rest = (1 - inside) * (1 - only_predicted)
            regions = (
                settings.FOREGROUND_WEIGHT * area.sqrt()
                + settings.BACKGROUND_WEIGHT * _averaging(rest)
                + settings.FALSE_POSITIVE_WEIGHT * _averaging(only_predicted)
            )
            weights.append(regions * spatial_attention(pair.teacher, settings.TEMPERATURE))
        return weights

    def _masks(
        self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any, kind: Any, **options: Any
    ) -> list[Tensor]:
        shapes = [pair.shape for pair in pairs]
        return draw_masks(self.sources, shapes, student, targets, kind, alpha=self.alpha, **options)

    def _distance(
        self,
        pairs: Sequence[FeaturePair],
        student: Sequence[Tensor],
        weights: Sequence[Tensor] | None,
        scale: Tensor,
    ) -> Tensor:
        """Returns the mean over maps and samples of scale (L, R) * sum of weights * d^2."""
        teachers = [pair.teacher for pair in pairs]
        return weighted_l2(student, teachers, scale / scale.numel(), weights=weights).sum()


@dataclasses.dataclass(frozen=True)
class _PredictedBoxes:
    """What a detector predicts, as objects that :func:`draw_masks` draws."""

    boxes: list[Tensor]

    def grid_boxes(self) -> list[Tensor]:
        """Returns one tensor (Q, 5) per sample: x, y, length, width, yaw; those of low scores far away."""
        return self.boxes

    @classmethod
    def of(cls, knowledge: Knowledge, threshold: float) -> _PredictedBoxes:
        """Takes the last decoder layer's boxes; those that score no more than the threshold are nowhere."""
        assert isinstance(knowledge, BEVKnowledge)
        codes = knowledge.filled("box_codes")[-1].float()
        boxes = decode_codes(codes.flatten(0, 1))
        rows = torch.cat([boxes.center[:, :2], boxes.size[:, :2], boxes.yaw[:, None]], dim=1)
        found = rows.unflatten(0, codes.shape[:2])
        scores = knowledge.filled("logits").float().sigmoid().amax(dim=-1, keepdim=True)
        # No row is dropped, since that would wait for the device.
        return cls(list(torch.where(scores > threshold, found, found.new_tensor([1e6, 1e6, 0, 0, 0]))))


def _averaging(mask: Tensor) -> Tensor:
    """Returns the mask (R, h, w) divided by its number of cells, of every sample."""
    return mask / mask.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def _attention_distance(student: Tensor, teacher: Tensor, adapter: nn.Module) -> Tensor:
    """Returns the absolute distance of the means over channels, summed over cells, averaged over samples."""
    ours, theirs = (widen(features).mean(dim=1, keepdim=True) for features in (student, teacher))
    with torch.autocast(student.device.type, enabled=False):
        distance: Tensor = (adapter(ours) - theirs).abs().sum() / len(ours)
    return distance


def _identity_convolution() -> nn.Module:
    layer = nn.Conv2d(1, 1, 3, padding=1)
    assert layer.bias is not None
    nn.init.dirac_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
