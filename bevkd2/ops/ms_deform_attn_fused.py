"""Multi-scale deformable attention from reference points, offsets and logits: the softmax is inside."""

from typing import Literal

import torch
from torch import Tensor

from .arguments import (
    SpatialShapes,
    check_dense_levels,
    check_sampling,
    check_value,
    integer,
    level_shapes,
    to_coordinates,
    warn_of_16_bits,
)
from .ms_deform_attn_autograd import register_softmax_form

_OP = "ms_deform_attn_fused"
ReferenceMode = Literal["level", "pillar"]


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    reference_mode: ReferenceMode = "level",
    num_queues: int = 1,
    return_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Computes multi-scale deformable attention from offsets and logits (arXiv 2010.04159, Eq. 3).

    The location of a point on level l is reference + offset / (w_l, h_l). Reference modes:

    - ``"level"``: level l uses reference l (or the only one). References (x, y, w, h) follow Deformable
      DETR's rule for boxes, in which an offset is a share of the box: (x, y) + offset / P * (w, h) * 0.5.
    - ``"pillar"``: point p uses reference p % R, the R heights of a BEV pillar (BEVFormer,
      arXiv 2203.17270, Eq. 3-4).

    With ``num_queues`` = K, batch entries b * K to b * K + K - 1 are the queues of sample b, and the output
    is their mean (BEVFormer's temporal self-attention, Eq. 5: history and current BEV).

    Args:
        value: (B * K, S, H, D), float64, float32, float16 or bfloat16; S counts the pixels of all levels,
            level by level, row-major.
        spatial_shapes: (h, w) of each level, as a list or an integer tensor (L, 2). Reading a CUDA tensor
            waits for the device; ``torch.compile(fullgraph=True)`` needs a list.
        reference_points: (B * K, Q, R, 2 or 4), normalised to [0, 1].
        sampling_offsets: (B * K, Q, H, L, P, 2) (x, y), in pixels of each level.
        attention_logits: (B * K, Q, H, L, P); the softmax is over the L * P points of a head jointly.
        reference_mode: which reference a point uses, see above.
        num_queues: K, the number of batch entries that a sample's output averages.
        return_weights: also return the softmaxed weights, which are differentiable.

    Returns:
        The output (B, Q, H * D) in the dtype of ``value``, and the weights (B * K, Q, H, L, P) in float32
        (float64 if ``value`` is), or ``None`` without ``return_weights``.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
        RuntimeError: a CUDA tensor, but the CUDA ops are not built.
    """
    check_value(_OP, value)
    shapes = level_shapes(_OP, spatial_shapes)
    check_dense_levels(_OP, value, shapes)
    check_sampling(
        _OP, value, ("sampling_offsets", "attention_logits"), sampling_offsets, attention_logits, 2
    )
    levels = len(shapes) // 2
    if attention_logits.shape[0] != value.shape[0] or attention_logits.shape[3] != levels:
        raise ValueError(
            f"{_OP}: attention_logits is {tuple(attention_logits.shape)}; expected (B, Q, H, L, P) with "
            f"value's batch of {value.shape[0]} and spatial_shapes' {levels} levels"
        )
    num_queues = integer(_OP, "num_queues", num_queues)
    if num_queues < 1 or value.shape[0] % num_queues != 0:
        raise ValueError(
            f"{_OP}: num_queues is {num_queues}; expected a divisor of value's batch of {value.shape[0]}"
        )
    _check_references(reference_points, attention_logits, reference_mode)
    warn_of_16_bits(_OP, "reference_points", reference_points)
    references, offsets, logits = to_coordinates(
        _OP,
        value,
        reference_points=reference_points,
        sampling_offsets=sampling_offsets,
        attention_logits=attention_logits,
    )
    out, weights = torch.ops.bevkd2.ms_deform_attn_fused(
        value, shapes, references, offsets, logits, reference_mode == "pillar", num_queues, return_weights
    )
    return out, weights if return_weights else None


def _check_references(references: Tensor, logits: Tensor, mode: str) -> None:
    if mode not in ("level", "pillar"):
        raise ValueError(f"{_OP}: reference_mode is {mode!r}; expected 'level' or 'pillar'")
    shape = tuple(references.shape)
    if len(shape) != 4 or shape[:2] != tuple(logits.shape[:2]) or shape[3] not in (2, 4) or shape[2] < 1:
        raise ValueError(
            f"{_OP}: reference_points is {shape}; expected {tuple(logits.shape[:2])} + (R, 2 or 4)"
        )
    # Not `not in (1, ...)`: torch.compile of torch 2.10 does not compare sizes that vary that way.
    if mode == "level" and shape[2] != 1 and shape[2] != logits.shape[3]:
        raise ValueError(
            f"{_OP}: reference_points is {shape}; with reference_mode='level' expected 1 or "
            f"{logits.shape[3]} references, one per level"
        )
    if mode == "pillar" and shape[3] != 2:
        raise ValueError(
            f"{_OP}: reference_points is {shape}; reference_mode='pillar' takes (x, y), not boxes"
        )


def _out_shape(value: Tensor, logits: Tensor, pillar: bool, queues: int) -> tuple[int, int, int]:
    return logits.shape[0] // queues, logits.shape[1], value.shape[2] * value.shape[3]


register_softmax_form(_OP, _out_shape)
