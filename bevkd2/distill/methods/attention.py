"""Spatial-temporal distillation: the attention weights of the encoder (structured distillation, Eq. 4-6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.layers import map_layers
from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.structured import StructuredMethod
from bevkd2.modeling.detector import Detector, FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge
from bevkd2.ops import attention_l2, masked_l2, pixel_wise_kl

_SMALLEST = 1e-12  # attention weight whose logarithm is taken for smaller ones


class _AttentionDistillation(StructuredMethod):
    """Computes the distance of the softmaxed attention weights of paired encoder layers.

    With DISTANCE kl it is the divergence of every head's (and, in temporal attention, every queue's)
    distribution over levels and points, summed over those of a cell (with REDUCTION mean: averaged). OFFSETS
    adds the L2 of the sampling offsets, in cells of the sampled map, reduced in the same way.

    Args:
        cfg: the method's node: that of :class:`StructuredMethod`, LAYER_MAP and OFFSETS.
    """

    field: ClassVar[str]
    offsets_field: ClassVar[str]

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.layer_map = cfg.LAYER_MAP
        self.offsets_weight = float(cfg.OFFSETS)
        self.check(self.offsets_weight >= 0, "OFFSETS", f"{self.offsets_weight}; expected a weight from 0")
        if self.offsets_weight:
            self.requires = self.requires | {self.offsets_field}

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of structured distillation, LAYER_MAP and OFFSETS."""
        super().add_config(node)
        node.LAYER_MAP = []  # [[student layer, teacher layer], ...]; []: spread evenly
        node.OFFSETS = 0.0  # weight of the distance of the sampling offsets, beside that of the weights

    def attach(self, student: Detector[Any, Any, Any], teacher: Detector[Any, Any, Any]) -> None:
        """Checks what is known of the encoders before the first step: the BEV grids, and LAYER_MAP.

        Raises:
            ValueError: other grids, or a pair of LAYER_MAP that names a layer that is not there.
        """
        super().attach(student, teacher)
        ours, theirs = student.feature_shapes().bev, teacher.feature_shapes().bev
        if ours is None or theirs is None:
            return
        self.check(
            ours.shape == theirs.shape,
            "",
            f"the BEV grid has {ours.shape} rows and columns in the student and {theirs.shape} in the "
            f"teacher; use the same grid, or leave {type(self).__name__} out of DISTILL.METHODS",
        )
        map_layers(ours.layers, theirs.layers, self.layer_map, self.check)

    def forward(
        self, student: BEVKnowledge, teacher: BEVKnowledge, targets: Any
    ) -> Tensor | dict[str, Tensor]:
        """Returns the loss, and that of the offsets where they are compared.

        Raises:
            ValueError: the two have another BEV grid, or other heads, levels or points.
        """
        cells = self.cells(student)
        pairs = self._paired(self.field, "weights", student, teacher)
        if self.distance == "kl":
            losses = _attention_kl(*pairs, cells, self.reduction)
        else:
            losses = attention_l2(*pairs, cells, reduction=self.reduction)
        loss = self.over_layers(losses, cells)
        if not self.offsets_weight:
            return loss
        pairs = self._paired(self.offsets_field, "offsets", student, teacher)
        offsets = masked_l2(*pairs, cells, reduction=self.reduction, loss_weight=self.offsets_weight)
        return {self.node.lower(): loss, self.offsets_field: self.over_layers(offsets, cells)}

    def _paired(
        self, field: str, what: str, student: BEVKnowledge, teacher: BEVKnowledge
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns what the paired layers of student and teacher have in a field."""
        students, teachers = student.filled(field), teacher.filled(field)
        pairs = map_layers(len(students), len(teachers), self.layer_map, self.check)
        for i, j in pairs:
            if students[i].shape != teachers[j].shape:
                raise ValueError(
                    f"DISTILL.{self.node}: the {what} of the student's layer {i} are "
                    f"{tuple(students[i].shape)}, of the teacher's layer {j} {tuple(teachers[j].shape)} "
                    "(batch, BEV cells, heads, queues or levels, points); give both the same BEV grid, "
                    f"heads, levels and points, or leave {type(self).__name__} out of DISTILL.METHODS"
                )
        return [students[i] for i, _ in pairs], [teachers[j] for _, j in pairs]


@register_method
class TemporalAttention(_AttentionDistillation):
    """Temporal self-attention weights, Eq. 4-6: how the teacher weighs the previous and the current BEV."""

    node = "TEMPORAL_ATTENTION"
    requires = frozenset({"temporal_attention"})
    field, offsets_field = "temporal_attention", "temporal_offsets"


@register_method
class SpatialAttention(_AttentionDistillation):
    """Spatial cross-attention weights, Eq. 4-6: how the teacher weighs what it samples in the cameras."""

    node = "SPATIAL_ATTENTION"
    requires = frozenset({"spatial_attention"})
    field, offsets_field = "spatial_attention", "spatial_offsets"


def _attention_kl(
    student: Sequence[Tensor], teacher: Sequence[Tensor], cells: Tensor | None, reduction: str
) -> Tensor:
    """Returns (L,): the divergences of distributions over the last two dimensions.

    Args:
        student: (B, cells, .., levels, points) of every layer.
        teacher: the same shapes.
        cells: (B, cells), how often a cell counts; None: all once.
        reduction: "sum" | "cell" | "mean".
    """
    batch, count = student[0].shape[:2]
    per_cell = student[0].shape[2:-2].numel()
    weights = None
    total: Tensor | float = count * batch
    if cells is not None:
        rows = cells.float()[:, :, None].expand(-1, -1, per_cell).reshape(batch, -1, 1)
        weights, total = [rows] * len(student), cells.float().sum()
    ours, theirs = ([_as_logits(layer) for layer in layers] for layers in (student, teacher))
    means = pixel_wise_kl(ours, theirs, weights)
    if reduction == "mean":
        return means
    return means * (per_cell * total / batch if reduction == "sum" else per_cell)


def _as_logits(weights: Tensor) -> Tensor:
    """Returns (B, cells, .., levels, points) as (B, levels * points, rows, 1), whose softmax it is."""
    rows = weights.clamp(min=_SMALLEST).log().flatten(-2).flatten(1, -2)
    return rows.transpose(1, 2).unsqueeze(-1)
