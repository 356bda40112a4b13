"""MGD: masked generative distillation (Yang et al., ECCV 2022, arXiv 2205.01529)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.generation import GenerationMethod
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.ops import weighted_l2


@register_method
class MGD(GenerationMethod):
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

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods, with the published weight, and MASK_RATIO."""
        super().add_config(node)
        node.WEIGHT = 2e-5  # as published; multiplied by DISTILL.FACTOR, which was 1
        node.MASK_RATIO = 0.65  # share of the cells that are set to 0

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> Tensor:
        """Returns the loss."""
        teachers = [pair.teacher for pair in pairs]
        images = len(teachers[0])
        scale = torch.full((len(pairs), images), 1 / images, device=teachers[0].device)
        return weighted_l2(self.generated(pairs), teachers, scale).sum()
