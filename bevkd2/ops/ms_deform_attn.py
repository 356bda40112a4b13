"""Multi-scale deformable attention, drop-in form: the caller gives locations and softmaxed weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import (
    SpatialShapes,
    check_sampling,
    check_value,
    integer,
    integral,
    level_shapes,
    level_starts,
    to_coordinates,
    warn_of_16_bits,
)
from .gradients import gradient_like, refuse_double_backward

_OP = "ms_deform_attn"


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    level_start_index: Tensor | Sequence[int] | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
) -> Tensor:
    """Computes multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3).

    A location (x, y) in [0, 1] is pixel (x * w - 0.5, y * h - 0.5). Values between pixels are interpolated
    bilinearly; outside the map they are zero, and NaN and infinite locations are outside. Coordinates and
    sums are float32 (float64 if ``value`` is), whatever the dtype of ``value`` and whatever autocast does.
    Locations in 16 bits are warned of, because they have already lost precision.

    Args:
        value: (B, S, H, D), float64, float32, float16 or bfloat16; S counts the pixels of all levels,
            row-major.
        spatial_shapes: (h, w) of each level, as a list or an integer tensor (L, 2). Reading a CUDA tensor
            waits for the device; ``torch.compile(fullgraph=True)`` needs a list.
        level_start_index: (L,) first pixel of each level in S, a list or a tensor; ``None`` if the levels
            are stored one after the other. Levels may overlap.
        sampling_locations: (B, Q, H, L, P, 2) normalised (x, y).
        attention_weights: (B, Q, H, L, P).
        im2col_step: ignored. Callers of the signature of 2020 pass it; it chunked the launch there.

    Returns:
        (B, Q, H * D) in the dtype of ``value``.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
        RuntimeError: a CUDA tensor, but the CUDA ops are not built.
    """
    check_value(_OP, value)
    shapes = level_shapes(_OP, spatial_shapes)
    starts = checked_level_starts(value, shapes, level_start_index)
    check_sampling(
        _OP, value, ("sampling_locations", "attention_weights"), sampling_locations, attention_weights, 2
    )
    if attention_weights.shape[0] != value.shape[0] or attention_weights.shape[3] != len(starts):
        raise ValueError(
            f"{_OP}: attention_weights is {tuple(attention_weights.shape)}; expected (B, Q, H, L, P) with "
            f"value's batch of {value.shape[0]} and spatial_shapes' {len(starts)} levels"
        )
    warn_of_16_bits(_OP, "sampling_locations", sampling_locations)
    locations, weights = to_coordinates(
        _OP, value, sampling_locations=sampling_locations, attention_weights=attention_weights
    )
    out: Tensor = torch.ops.bevkd2.ms_deform_attn(value, shapes, starts, locations, weights)
    return out


def checked_level_starts(
    value: Tensor, shapes: list[int], level_start_index: Tensor | Sequence[int] | None
) -> list[int]:
    """Returns the first pixel of each level in ``value``.

    Args:
        value: (B, S, H, D).
        shapes: h0, w0, h1, w1, ...
        level_start_index: see :func:`ms_deform_attn`.

    Raises:
        ValueError: not one integer per level, or a level that does not lie in ``value``.
    """
    if level_start_index is None:
        starts = level_starts(shapes)
    elif isinstance(level_start_index, Tensor):
        if level_start_index.dim() != 1 or not integral(level_start_index):
            raise ValueError(
                f"{_OP}: level_start_index is {tuple(level_start_index.shape)} {level_start_index.dtype} on "
                f"{level_start_index.device}; expected an integer (L,), or a list of int"
            )
        starts = level_start_index.tolist()
    else:
        starts = [integer(_OP, "level_start_index", start) for start in level_start_index]
    if len(starts) * 2 != len(shapes):
        raise ValueError(
            f"{_OP}: level_start_index has {len(starts)} levels, spatial_shapes {len(shapes) // 2}"
        )
    for level, start in enumerate(starts):
        end = start + shapes[2 * level] * shapes[2 * level + 1]
        if start < 0 or end > value.shape[1]:
            raise ValueError(
                f"{_OP}: level {level} takes pixels {start} to {end}, but value {tuple(value.shape)} has "
                f"{value.shape[1]}; check spatial_shapes and level_start_index"
            )
    return starts


@torch.library.register_fake("bevkd2::ms_deform_attn")
def _fake(value: Tensor, shapes: list[int], starts: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(weights.shape[0], weights.shape[1], value.shape[2] * value.shape[3])


@torch.library.register_fake("bevkd2::ms_deform_attn_backward")
def _fake_backward(
    grad_out: Tensor,
    value: Tensor,
    shapes: list[int],
    starts: list[int],
    locations: Tensor,
    weights: Tensor,
    need_value: bool,
    need_locations: bool,
    need_weights: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        gradient_like(value, need_value),
        gradient_like(locations, need_locations),
        gradient_like(weights, need_weights),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.shapes, ctx.starts, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    need_value, _, _, need_locations, need_weights = ctx.needs_input_grad
    grads = torch.ops.bevkd2.ms_deform_attn_backward(
        grad_out,
        value,
        ctx.shapes,
        ctx.starts,
        locations,
        weights,
        need_value,
        need_locations,
        need_weights,
        torch.are_deterministic_algorithms_enabled(),
    )
    return (
        grads[0] if need_value else None,
        None,
        None,
        grads[1] if need_locations else None,
        grads[2] if need_weights else None,
    )


torch.library.register_autograd("bevkd2::ms_deform_attn", _backward, setup_context=_setup_context)
refuse_double_backward("ms_deform_attn_backward")
