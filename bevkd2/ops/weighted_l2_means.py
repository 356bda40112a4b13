"""The weighted squared distance of a feature map together with the means of |student|^p.

For losses that compare both features and attention, such as FGD's: two ops on the student would each give a
gradient of its size, which autograd adds. Here the backward pass writes one, and adds the other in place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .absolute_means import Power, check_power, contiguous
from .gradients import refuse_second_derivative
from .precision import arithmetic_dtype
from .weighted_l2 import arguments

_OP = "weighted_l2_with_means"


class DistanceAndMeans(NamedTuple):
    """A distance, and the means of ``|student|^p``; float32 (float64 if a feature is)."""

    distance: Tensor
    """A scalar."""
    pixels: Tensor
    """Means over the channels of a pixel, (B, pixels..)."""
    channels: Tensor
    """Means over the pixels of a channel, (B, C)."""


def weighted_l2_with_means(
    student: Tensor,
    teacher: Tensor,
    scale: Tensor,
    *,
    weights: Tensor | None = None,
    channel_weights: Tensor | None = None,
    power: Power = 1,
) -> DistanceAndMeans:
    """Computes ``weighted_l2`` of one map, and ``absolute_means`` of the student.

    The forward pass keeps no tensor of the student's size, and the backward pass makes one, the gradient.
    The means are those of all features, also of entries with weight 0.

    Args:
        student: (B, C, pixels..).
        teacher: of the same shape.
        scale: (B,), on the features' device.
        weights: of pixels, (B, pixels..), not negative; None: 1.
        channel_weights: (C,) or (B, C), not negative; None: 1.
        power: p of the means, 1 or 2.

    Returns:
        The distance and the means.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, weights that require a gradient, or another
            power.
        RuntimeError: a CUDA tensor, but the CUDA ops are not built, or a forward-mode derivative.
    """
    power = check_power(_OP, power)
    if student.dim() < 3:
        raise ValueError(f"{_OP}: student is {tuple(student.shape)}; expected (B, C, pixels..)")
    given = arguments(
        [student],
        [teacher],
        scale[None],
        None if weights is None else [weights],
        None if channel_weights is None else [channel_weights],
    )
    distances, pixels, channels = torch.ops.bevkd2.weighted_l2_with_means(
        given.student[0],
        given.teacher[0],
        given.pixel_weights[0],
        given.channel_weights[0],
        given.scale,
        power,
    )
    return DistanceAndMeans(distances[0], pixels.view(len(student), *student.shape[2:]), channels)


@torch.library.custom_op(
    "bevkd2::weighted_l2_with_means",
    mutates_args=(),
    schema="(Tensor student, Tensor teacher, Tensor pixel_weights, Tensor channel_weights, Tensor scale, "
    "int power) -> (Tensor, Tensor, Tensor)",
)
def _op(
    student: Tensor,
    teacher: Tensor,
    pixel_weights: Tensor,
    channel_weights: Tensor,
    scale: Tensor,
    power: int,
) -> tuple[Tensor, Tensor, Tensor]:
    ops = torch.ops.bevkd2
    distances, _, _ = ops.weighted_l2(
        [student], [teacher], [pixel_weights], [channel_weights], scale, False, False
    )
    pixels, channels = ops.absolute_means(student, power)
    return distances, pixels, channels


@_op.register_fake
def _fake(
    student: Tensor,
    teacher: Tensor,
    pixel_weights: Tensor,
    channel_weights: Tensor,
    scale: Tensor,
    power: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, pixels = student.shape
    dtype = arithmetic_dtype(student)
    return (
        scale.new_empty(1),
        student.new_empty((batch, pixels), dtype=dtype),
        student.new_empty((batch, channels), dtype=dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.power = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _backward(
    ctx: Any, upstream: Tensor | None, grad_pixels: Tensor | None, grad_channels: Tensor | None
) -> tuple[Tensor | None, ...]:
    refuse_second_derivative(_OP)
    student, teacher, pixel_weights, channel_weights, scale = ctx.saved_tensors
    means = contiguous(grad_pixels), contiguous(grad_channels)
    attended = any(gradient is not None for gradient in means)
    grad = None
    if upstream is not None:
        (grad,) = torch.ops.bevkd2.weighted_l2_backward(
            [student], [teacher], [pixel_weights], [channel_weights], scale * upstream[:, None]
        )
        if attended:
            torch.ops.bevkd2.add_absolute_means_gradient_(grad, *means, student, ctx.power)
    elif attended:
        grad = torch.ops.bevkd2.absolute_means_backward(*means, student, ctx.power)
    return grad, None, None, None, None, None


_op.register_autograd(_backward, setup_context=_setup_context)
