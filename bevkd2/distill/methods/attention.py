"""Spatial-temporal distillation: the attention weights of the encoder (structured distillation, Eq. 4-6)."""

from __future__ import annotations

from typing import Any, ClassVar

from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.methods.base import DistillMethod, register_method
from bevkd2.distill.methods.layers import map_layers
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge, Knowledge
from bevkd2.ops import attention_l2


class _AttentionDistillation(DistillMethod):
    """L2 between the softmaxed attention weights of paired encoder layers, averaged over the pairs.

    Cells that no camera sees do not count.

    Args:
        cfg: the method's node: REDUCTION (see :func:`bevkd2.ops.attention_l2`) and LAYER_MAP.
    """

    knowledge = BEVKnowledge
    field: ClassVar[str]

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.reduction = cfg.REDUCTION
        self.layer_map = cfg.LAYER_MAP

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds WEIGHT, REDUCTION and LAYER_MAP."""
        super().add_config(node)
        # The paper writes the L2 norm and one factor of 0.01: the un-squared norm over a sample is the
        # reading under which that factor balances the magnitudes (docs/distillation.md).
        node.REDUCTION = "norm"  # "norm" | "sum" | "cell" | "mean"
        node.LAYER_MAP = []  # [[student layer, teacher layer], ...]; []: spread evenly, last meets last

    def forward(self, student: Knowledge, teacher: Knowledge, targets: Any) -> dict[str, Tensor]:
        """Returns ``{"<field>": loss}``; both knowledges must be a BEV detector's with the same BEV grid."""
        assert isinstance(student, BEVKnowledge) and isinstance(teacher, BEVKnowledge)
        ours, theirs = getattr(student, self.field), getattr(teacher, self.field)
        assert ours is not None and theirs is not None, f"{self.field} was not wanted"
        pairs = map_layers(len(ours), len(theirs), self.layer_map)
        for i, j in pairs:
            if ours[i].shape != theirs[j].shape:
                raise ValueError(
                    f"DISTILL.{self.node}: weights of the student's layer {i} are {tuple(ours[i].shape)}, of "
                    f"the teacher's layer {j} {tuple(theirs[j].shape)} (batch, BEV cells, heads, queues or "
                    "levels, points); give both the same BEV grid, heads, levels and points, or leave "
                    f"{type(self).__name__} out of DISTILL.METHODS"
                )
        mask = student.seen_by_any_camera()
        losses = attention_l2(
            [ours[i] for i, _ in pairs], [theirs[j] for _, j in pairs], mask, reduction=self.reduction
        )
        return {self.field: losses.mean()}


@register_method
class TemporalAttention(_AttentionDistillation):
    """Temporal self-attention weights, Eq. 4-6: how the teacher weighs the previous and the current BEV."""

    node = "TEMPORAL_ATTENTION"
    reads = frozenset({"temporal_attention"})
    field = "temporal_attention"


@register_method
class SpatialAttention(_AttentionDistillation):
    """Spatial cross-attention weights, Eq. 4-6: how the teacher weighs what it samples in the cameras."""

    node = "SPATIAL_ATTENTION"
    reads = frozenset({"spatial_attention"})
    field = "spatial_attention"
