"""TempDistiller: a longer history from masked features (Zheng et al., arXiv 2401.01918)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.generation import GenerationMethod
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.ops import weighted_l2


@register_method
class TempDistiller(GenerationMethod):
    """Computes the mean squared distance of the teacher's bird's-eye view from one that a generator makes.

    The teacher sees more frames than the student: DISTILL.TEACHER.OWN_INPUT with INPUT.QUEUE_LENGTH in
    DISTILL.TEACHER's own config. The student's features pass the adapter; a random share of the cells
    (MASK_RATIO) is set to 0 in all channels; a generator of two 3x3 convolutions with a ReLU between them,
    one per map, has to restore what the teacher knows from the longer history. The loss is averaged over
    channels, cells and samples and summed over the maps; every step draws new masks from the global random
    state. Adapters and generators are trained with the student and are no part of it.

    Of the paper this is the masked reconstruction. Left out are the self-attention over the teacher's frames,
    which makes its target (BEVFormer's temporal attention has joined the frames already, and attention of all
    cells with each other is too large on a grid), and the relations between frames, which need every frame's
    features of both models with gradient; BEVFormer's history runs without. No released code was found:
    MASK_RATIO and WEIGHT are ours.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: sources that are not on the BEV grid or that the two do not share, channels that differ
            without an adapter, or a share that is not in [0, 1).
    """

    node = "TEMP_DISTILLER"
    sources_default = ("bev",)

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        for source in self.sources:
            self.check(
                source.plane == "bev",
                "SOURCES",
                f"{source.name}; expected bev, bev.layers, bev.temporal or bev.spatial, which hold "
                "the history",
            )

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods, and MASK_RATIO."""
        super().add_config(node)
        node.MASK_RATIO = 0.5  # share of the cells that are set to 0

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> Tensor:
        """Returns the loss."""
        aims = [pair.teacher for pair in pairs]
        scales = [1 / features.numel() for features in aims]
        scale = torch.tensor(scales, dtype=torch.float64).to(aims[0].device, non_blocking=True)
        return weighted_l2(self.generated(pairs), aims, scale[:, None].expand(-1, len(aims[0]))).sum()
