"""Multi-scale deformable attention over visible (camera, query) pairs: spatial cross attention unpadded."""

import torch
from torch import Tensor

from .arguments import (
    SpatialShapes,
    check_dense_levels,
    check_sampling,
    check_shape,
    check_value,
    level_shapes,
    to_coordinates,
    warn_of_16_bits,
)
from .ms_deform_attn_autograd import register_formulas
from .ms_deform_attn_fused import ms_deform_attn_fused_reference

_OP = "ms_deform_attn_ragged"


def ms_deform_attn_ragged(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    row_splits: Tensor,
    row_value: Tensor,
    *,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mean over a query's views of deformable attention: BEVFormer's spatial cross attention (Eq. 3).

    Query m owns rows row_splits[m] .. row_splits[m + 1]. Row r samples value[row_value[r]] at
    reference_points[r] with the offsets and weights of its query; point p uses reference p % Z. A query
    without rows gives zero.

    Args:
        value: (V, S, H, D), one entry a (sample, camera); dtypes as in ms_deform_attn.
        spatial_shapes: (h, w) of each level; see ms_deform_attn.
        reference_points: (R, Z, 2) normalised (x, y) of each row's Z heights.
        sampling_offsets: (M, H, L, P, 2) (x, y), in pixels of each level.
        attention_logits: (M, H, L, P); the softmax is over a head's L * P points jointly.
        row_splits: (M + 1,) int64, ascending from 0 to R.
        row_value: (R,) int64, the entry of value that each row samples.
        return_weights: also return the softmaxed weights. They are differentiable.

    Returns:
        (M, H * D) in value's dtype; with return_weights also (M, H, L, P) in float32 (float64 if so).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
        RuntimeError: row_splits or row_value out of range; a CUDA tensor where the CUDA ops are not built.
    """
    check_value(_OP, value)
    shapes = level_shapes(_OP, spatial_shapes)
    check_dense_levels(_OP, value, shapes)
    check_sampling(
        _OP, value, ("sampling_offsets", "attention_logits"), sampling_offsets, attention_logits, 1
    )
    levels = len(shapes) // 2
    if attention_logits.shape[2] != levels:
        raise ValueError(
            f"{_OP}: attention_logits is {tuple(attention_logits.shape)}; expected (M, H, L, P) with "
            f"spatial_shapes' {levels} levels"
        )
    if reference_points.dim() != 3 or reference_points.shape[2] != 2 or reference_points.shape[1] < 1:
        raise ValueError(f"{_OP}: reference_points is {tuple(reference_points.shape)}; expected (R, Z, 2)")
    check_shape(_OP, "row_splits", row_splits, (attention_logits.shape[0] + 1,), "(M + 1,)")
    check_shape(_OP, "row_value", row_value, (reference_points.shape[0],), "(R,)")
    for name, rows in (("row_splits", row_splits), ("row_value", row_value)):
        if rows.dtype != torch.int64 or rows.device != value.device:
            raise ValueError(
                f"{_OP}: {name} is {rows.dtype} on {rows.device}; expected int64 on {value.device}"
            )
    warn_of_16_bits(_OP, "reference_points", reference_points)
    references, offsets, logits = to_coordinates(
        _OP,
        value,
        reference_points=reference_points,
        sampling_offsets=sampling_offsets,
        attention_logits=attention_logits,
    )
    out, weights = torch.ops.bevkd2.ms_deform_attn_ragged(
        value, shapes, references, offsets, logits, row_splits, row_value, return_weights
    )
    return (out, weights) if return_weights else out


def _out_shape(value: Tensor, logits: Tensor, row_splits: Tensor, row_value: Tensor) -> tuple[int, ...]:
    return logits.shape[0], value.shape[2] * value.shape[3]


register_formulas(_OP, _out_shape)


def ms_deform_attn_ragged_reference(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    row_splits: Tensor,
    row_value: Tensor,
    *,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The same in plain torch, each row a batch of its own: slow, and what the tests hold the op to."""
    counts = row_splits.diff()
    query = torch.repeat_interleave(counts)  # of each row
    rows = ms_deform_attn_fused_reference(
        value[row_value],
        spatial_shapes,
        reference_points[:, None],
        sampling_offsets[query][:, None],
        attention_logits[query][:, None],
        reference_mode="pillar",
    )
    assert isinstance(rows, Tensor)
    total = rows.new_zeros(counts.shape[0], value.shape[2] * value.shape[3]).index_add(0, query, rows[:, 0])
    out = total / counts.clamp(min=1)[:, None]
    weights = attention_logits.flatten(-2).softmax(-1).view_as(attention_logits)
    return (out, weights) if return_weights else out
