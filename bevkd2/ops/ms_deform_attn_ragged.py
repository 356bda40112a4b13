"""Multi-scale deformable attention over visible (camera, query) pairs: spatial cross-attention unpadded."""

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
from .ms_deform_attn_autograd import register_softmax_form

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
) -> tuple[Tensor, Tensor | None]:
    """Computes deformable attention per (camera, query) pair and averages it per query.

    This is BEVFormer's spatial cross-attention (arXiv 2203.17270, Eq. 3). Query m owns the rows
    ``row_splits[m]`` to ``row_splits[m + 1]``. Row r samples ``value[row_value[r]]`` at
    ``reference_points[r]`` with the offsets and logits of its query; point p uses reference p % Z. A query
    without rows gives zero.

    Args:
        value: (V, S, H, D), one entry per (sample, camera); dtypes as in :func:`ms_deform_attn`.
        spatial_shapes: (h, w) of each level, as a list or an integer tensor (L, 2). Reading a CUDA tensor
            waits for the device; ``torch.compile(fullgraph=True)`` needs a list.
        reference_points: (R, Z, 2) normalised (x, y) of the Z heights of each row.
        sampling_offsets: (M, H, L, P, 2) (x, y), in pixels of each level.
        attention_logits: (M, H, L, P); the softmax is over the L * P points of a head jointly.
        row_splits: (M + 1,) int64, ascending from 0 to R.
        row_value: (R,) int64, the entry of ``value`` that each row samples.
        return_weights: also return the softmaxed weights, which are differentiable.

    Returns:
        output: (M, H * D) in the dtype of ``value``.
        weights: (M, H, L, P) in float32 (float64 if ``value`` is), or ``None`` without ``return_weights``.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
        RuntimeError: ``row_splits`` or ``row_value`` out of range; a CUDA tensor, but the CUDA ops are not
            built.
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
    return out, weights if return_weights else None


def _out_shape(value: Tensor, logits: Tensor, row_splits: Tensor, row_value: Tensor) -> tuple[int, int]:
    return logits.shape[0], value.shape[2] * value.shape[3]


register_softmax_form(_OP, _out_shape)
