"""Means of ``|x|^p`` over channels and over pixels of feature maps, of which attention maps are made.

One pass over the features gives both means, and one pass writes their gradient. Arithmetic is float32
(float64 if the features are), whatever autocast does.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .arguments import check_device, check_floating, integer, refuse_forward_mode
from .gradients import refuse_second_derivative
from .precision import arithmetic_dtype

_OP = "absolute_means"
Power = Literal[1, 2]


class AbsoluteMeans(NamedTuple):
    """Means of ``|x|^p`` of features (B, C, pixels..); float32 (float64 if the features are)."""

    pixels: Tensor
    """Over the channels of a pixel, (B, pixels..)."""
    channels: Tensor
    """Over the pixels of a channel, (B, C)."""


def absolute_means(features: Tensor, *, power: Power = 1) -> AbsoluteMeans:
    """Computes the means of ``|x|^p`` over the channels of each pixel and over the pixels of each channel.

    The backward pass needs the features and no other tensor of their size. At a feature of zero the gradient
    is zero, as for ``abs``.

    Args:
        features: (B, C, pixels..) of any floating dtype, such as (B, C, H, W). Maps in which neither pixels
            nor channels are adjacent in memory are copied.
        power: p, 1 or 2.

    Returns:
        Both means.

    Raises:
        ValueError: another shape or dtype, a device without kernels, or another power.
        RuntimeError: a CUDA tensor, but the CUDA ops are not built.
    """
    power = check_power(_OP, power)
    check_device(_OP, "features", features)
    refuse_forward_mode(_OP, features)
    check_floating(_OP, "features", features)
    if features.dim() < 3:
        raise ValueError(f"{_OP}: features is {tuple(features.shape)}; expected (B, C, pixels..)")
    pixels, channels = torch.ops.bevkd2.absolute_means(features.flatten(2), power)
    return AbsoluteMeans(pixels.view(len(features), *features.shape[2:]), channels)


def check_power(op: str, power: int) -> Power:
    """Returns a power for which there are kernels.

    Args:
        op: the function that the user called.
        power: p.

    Raises:
        ValueError: another power than 1 and 2.
    """
    power = integer(op, "power", power)
    if power not in get_args(Power):
        raise ValueError(f"{op}: power is {power!r}; expected 1 or 2")
    return 1 if power == 1 else 2


@torch.library.register_fake("bevkd2::absolute_means")
def _fake(features: Tensor, power: int) -> tuple[Tensor, Tensor]:
    batch, channels, pixels = features.shape
    dtype = arithmetic_dtype(features)
    return features.new_empty((batch, pixels), dtype=dtype), features.new_empty(
        (batch, channels), dtype=dtype
    )


@torch.library.register_fake("bevkd2::absolute_means_backward")
def _fake_backward(
    grad_pixels: Tensor | None, grad_channels: Tensor | None, features: Tensor, power: int
) -> Tensor:
    return torch.empty_like(features)


@torch.library.register_fake("bevkd2::add_absolute_means_gradient_")
def _fake_add(
    gradient: Tensor, grad_pixels: Tensor | None, grad_channels: Tensor | None, features: Tensor, power: int
) -> None:
    return None


def _setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    features, ctx.power = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(features)


def _backward(
    ctx: Any, grad_pixels: Tensor | None, grad_channels: Tensor | None
) -> tuple[Tensor | None, None]:
    refuse_second_derivative(_OP)
    if grad_pixels is None and grad_channels is None:
        return None, None
    (features,) = ctx.saved_tensors
    grads = contiguous(grad_pixels), contiguous(grad_channels)
    return torch.ops.bevkd2.absolute_means_backward(*grads, features, ctx.power), None


def contiguous(gradient: Tensor | None) -> Tensor | None:
    """Returns a gradient of means in the memory layout that the kernels read.

    Args:
        gradient: of any shape, such as (B, C); None where a mean was not used.

    Returns:
        The same numbers, contiguous; None for None.
    """
    return None if gradient is None else gradient.contiguous()


torch.library.register_autograd("bevkd2::absolute_means", _backward, setup_context=_setup_context)
