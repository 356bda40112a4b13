"""Spatial-temporal distillation: the attention weights of the encoder (structured distillation, Eq. 4-6)."""

from __future__ import annotations

from typing import Any, ClassVar, get_args

from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.layers import map_layers
from bevkd2.distill.methods.base import DistillMethod, register_method
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge
from bevkd2.ops import Reduction, attention_l2


class _AttentionDistillation(DistillMethod[BEVKnowledge]):
    """Computes the L2 of the softmaxed attention weights of paired encoder layers, averaged over the pairs.

    Cells that no camera sees do not count.

    Args:
        cfg: the method's node: REDUCTION (see :func:`bevkd2.ops.attention_l2`) and LAYER_MAP.
    """

    knowledge = BEVKnowledge
    field: ClassVar[str]

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.reduction = self.one_of(cfg, "REDUCTION", get_args(Reduction))
        self.layer_map = cfg.LAYER_MAP

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds WEIGHT, REDUCTION and LAYER_MAP."""
        super().add_config(node)
        # The paper writes the L2 norm and one factor of 0.01: the un-squared norm over a sample is the
        # reading under which that factor balances the magnitudes (docs/distillation.md).
        node.REDUCTION = "norm"  # "norm" | "sum" | "cell" | "mean"
        node.LAYER_MAP = []  # [[student layer, teacher layer], ...]; []: spread evenly, last meets last

    def forward(self, student: BEVKnowledge, teacher: BEVKnowledge, targets: Any) -> Tensor:
        """Returns the loss.

        Raises:
            ValueError: the two have another BEV grid, or other heads, levels or points.
        """
        students, teachers = getattr(student, self.field), getattr(teacher, self.field)
        pairs = map_layers(len(students), len(teachers), self.layer_map)
        for i, j in pairs:
            if students[i].shape != teachers[j].shape:
                raise ValueError(
                    f"DISTILL.{self.node}: the weights of the student's layer {i} are "
                    f"{tuple(students[i].shape)}, of the teacher's layer {j} {tuple(teachers[j].shape)} "
                    "(batch, BEV cells, heads, queues or levels, points); give both the same BEV grid, "
                    f"heads, levels and points, or leave {type(self).__name__} out of DISTILL.METHODS"
                )
        mask = student.seen_by_any_camera()
        losses = attention_l2(
            [students[i] for i, _ in pairs], [teachers[j] for _, j in pairs], mask, reduction=self.reduction
        )
        return losses.mean()


@register_method
class TemporalAttention(_AttentionDistillation):
    """Temporal self-attention weights, Eq. 4-6: how the teacher weighs the previous and the current BEV."""

    node = "TEMPORAL_ATTENTION"
    requires = frozenset({"temporal_attention"})
    field = "temporal_attention"


@register_method
class SpatialAttention(_AttentionDistillation):
    """Spatial cross-attention weights, Eq. 4-6: how the teacher weighs what it samples in the cameras."""

    node = "SPATIAL_ATTENTION"
    requires = frozenset({"spatial_attention"})
    field = "spatial_attention"
