"""MGD: masked generative distillation (Yang et al., ECCV 2022, arXiv 2205.01529)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn

from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.feature import FeatureMethod
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.ops import weighted_l2


@register_method
class MGD(FeatureMethod):
    """Computes the squared distance of the teacher's features from those that a generator makes (Eq. 3, 4).

    The student's features pass through the adapter, a random share of their cells (MASK_RATIO) is set to 0
    in all channels, and a generator of two 3x3 convolutions with a ReLU between them, one per map, restores
    the teacher's. The loss is summed over channels, cells and maps, and averaged over the images; padding
    counts as any cell, as published. Each step draws new masks from the global random state. WEIGHT and
    MASK_RATIO are the published ones of one-stage detectors (5e-7 and 0.45 of two-stage ones). The generators
    and adapters are trained with the student and are no part of it.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: sources that the two do not share, channels that differ without an adapter, or a share
            that is not in [0, 1).
    """

    node = "MGD"
    adapter_default = "auto"

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.mask_ratio = float(cfg.MASK_RATIO)
        self.check(
            0 <= self.mask_ratio < 1, "MASK_RATIO", f"{self.mask_ratio}; expected a share from 0 to below 1"
        )
        self.generators = nn.ModuleList(_make_generator(source.teacher_channels) for source in self.sources)

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods, with the published weight, and MASK_RATIO."""
        super().add_config(node)
        node.WEIGHT = 2e-5  # as published; multiplied by DISTILL.FACTOR, which was 1
        node.MASK_RATIO = 0.65  # share of the cells that are set to 0

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> Tensor:
        """Returns the loss."""
        generated = [
            generator(self._masked(ours))
            for generator, ours in zip(self.generators, self.adapted(pairs), strict=True)
        ]
        teachers = [pair.teacher for pair in pairs]
        images = len(teachers[0])
        scale = torch.full((len(pairs), images), 1 / images, device=teachers[0].device)
        return weighted_l2(generated, teachers, scale).sum()

    def _masked(self, features: Tensor) -> Tensor:
        draws = torch.rand(len(features), 1, *features.shape[-2:], device=features.device)
        return features * (draws >= self.mask_ratio).to(features.dtype)


def _make_generator(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1),
    )
