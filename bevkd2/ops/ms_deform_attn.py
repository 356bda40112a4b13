"""Multi-scale deformable attention, drop-in form: locations and softmaxed weights come from outside."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import (
    SpatialShapes,
    check_sampling,
    check_value,
    gradient_like,
    level_shapes,
    level_starts,
    refuse_double_backward,
    to_coordinates,
    warn_of_16_bits,
)

_OP = "ms_deform_attn"


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    level_start_index: Tensor | Sequence[int] | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int = 64,
) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, Eq. 3).

    A location (x, y) in [0, 1] lies at pixel (x * w - 0.5, y * h - 0.5); values between pixels are bilinear,
    outside the map zero, and NaN and infinite locations are outside. Coordinates and sums are float32 at
    least (float64 beside float64 value) whatever value's dtype and whatever autocast does; locations that
    arrive in 16 bits have already lost their pixel, so they are warned of.

    Args:
        value: (B, S, H, D), float64, float32, float16 or bfloat16; S is all levels' pixels, row-major.
        spatial_shapes: (h, w) of each level, as a list or an integer tensor (L, 2). A list costs no device
            synchronisation, a CUDA tensor one; torch.compile(fullgraph=True) takes a list.
        level_start_index: (L,) first pixel of each level in S, a list or a tensor; None where levels lie one
            behind the other. Levels may overlap.
        sampling_locations: (B, Q, H, L, P, 2) normalised (x, y).
        attention_weights: (B, Q, H, L, P).
        im2col_step: ignored. Callers of the signature of 2020 pass it; it chunked the launch there.

    Returns:
        (B, Q, H * D) in value's dtype.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
        RuntimeError: a CUDA tensor where the CUDA ops are not built.
    """
    check_value(_OP, value)
    shapes = level_shapes(_OP, spatial_shapes)
    starts = _level_starts(value, shapes, level_start_index)
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
    return torch.ops.bevkd2.ms_deform_attn(value, shapes, starts, locations, weights)


def _level_starts(
    value: Tensor, shapes: list[int], level_start_index: Tensor | Sequence[int] | None
) -> list[int]:
    if level_start_index is None:
        starts = level_starts(shapes)
    elif isinstance(level_start_index, Tensor):
        if level_start_index.dim() != 1 or level_start_index.is_floating_point():
            raise ValueError(
                f"{_OP}: level_start_index is {tuple(level_start_index.shape)} {level_start_index.dtype}; "
                "expected an integer (L,), or a list of int"
            )
        starts = level_start_index.tolist()
    else:
        starts = [int(start) for start in level_start_index]
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


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
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


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: SpatialShapes,
    level_start_index: Tensor | Sequence[int] | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The same in plain torch, by index arithmetic: slow, and what the tests hold the op to."""
    shapes = level_shapes(_OP, spatial_shapes)
    starts = _level_starts(value, shapes, level_start_index)
    batch, queries, heads, _, _ = attention_weights.shape
    out = value.new_zeros(batch, queries, heads, value.shape[3])
    for level, start in enumerate(starts):
        height, width = shapes[2 * level], shapes[2 * level + 1]
        maps = value[:, start : start + height * width].permute(0, 2, 1, 3)  # (B, H, h * w, D)
        sampled = _bilinear(maps, height, width, sampling_locations[:, :, :, level])
        out = out + (sampled * attention_weights[:, :, :, level, :, None]).sum(3)
    return out.flatten(2)


def _bilinear(maps: Tensor, height: int, width: int, locations: Tensor) -> Tensor:
    """maps (B, H, h * w, D) at locations (B, Q, H, P, 2) -> (B, Q, H, P, D)."""
    x, y = locations[..., 0] * width - 0.5, locations[..., 1] * height - 0.5
    valid = (x > -1) & (x < width) & (y > -1) & (y < height)
    x, y = x.where(valid, 0), y.where(valid, 0)  # NaN must not reach the products below
    left, top = x.floor().detach(), y.floor().detach()
    out = locations.new_zeros(*locations.shape[:-1], maps.shape[-1])
    for column, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
        for row, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
            inside = valid & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = (row * width + column).where(inside, 0).long()  # (B, Q, H, P)
            flat = index.permute(0, 2, 1, 3).flatten(2)[..., None].expand(-1, -1, -1, maps.shape[-1])
            corner = (
                maps.gather(2, flat).unflatten(2, (index.shape[1], index.shape[3])).permute(0, 2, 1, 3, 4)
            )
            out = out + corner * (weight_x * weight_y * inside)[..., None]
    return out
