"""KL divergence of softmaxes over positions (channel-wise) or over channels (pixel-wise).

Arithmetic is float32 (float64 if an input is), whatever autocast does. Features may be contiguous or
channels-last and may differ in dtype; nothing of their size is copied. The teacher and the weights get no
gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import check_levels, check_pair
from .gradients import gradients_in_forward, refuse_second_derivative, scaled_by_upstream
from .precision import arithmetic_dtype, ordered_sum

_OP = "softmax_kl"
Features = Tensor | Sequence[Tensor]


def channel_wise_kl(
    student: Features,
    teacher: Features,
    weights: Features | None = None,
    *,
    temperature: float = 1.0,
    loss_weight: float = 1.0,
) -> Tensor:
    """Computes the KL divergence of each channel's softmax over positions from the teacher's.

    loss = loss_weight * T^2 * sum of w * KL(teacher || student) / sum of w, over the channels of the whole
    batch. Without weights that is Eq. 4 and 5 of Channel-wise Knowledge Distillation for Dense Prediction
    (arXiv 2011.13256), T^2 / C times the sum over channels, averaged over the batch.

    Args:
        student: (B, C, H, W) features, or a list of L levels.
        teacher: the same shapes.
        weights: (C,) or (B, C) per level, not negative; channels of weight 0 are ignored, even if NaN.
        temperature: T, by which both features are divided.
        loss_weight: factor of the loss.

    Returns:
        A scalar for one tensor, (L,) for a list; float32 (float64 if an input is).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or a temperature that is not positive.
        RuntimeError: a CUDA tensor, but the CUDA ops are not built.
    """
    return _kl("channel_wise_kl", student, teacher, weights, temperature, loss_weight)


def pixel_wise_kl(
    student: Features,
    teacher: Features,
    weights: Features | None = None,
    *,
    temperature: float = 1.0,
    loss_weight: float = 1.0,
) -> Tensor:
    """Computes the KL divergence of each position's softmax over channels from the teacher's.

    loss = loss_weight * T^2 * sum of w * KL(teacher || student) / sum of w, over the pixels of the whole
    batch. Without weights and with T = 1 that is Eq. 2 of Structured Knowledge Distillation for Semantic
    Segmentation (arXiv 1903.04197), as its code computes it, averaged over the batch.

    Args:
        student: (B, C, H, W) features or class logits, or a list of L levels.
        teacher: the same shapes.
        weights: (B, H, W) per level, not negative; pixels of weight 0 are ignored, even if NaN.
        temperature: T, by which both features are divided.
        loss_weight: factor of the loss.

    Returns:
        A scalar for one tensor, (L,) for a list; float32 (float64 if an input is).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or a temperature that is not positive.
        RuntimeError: a CUDA tensor, but the CUDA ops are not built.
    """
    return _kl("pixel_wise_kl", student, teacher, weights, temperature, loss_weight)


def _kl(
    name: str,
    student: Features,
    teacher: Features,
    weights: Features | None,
    temperature: float,
    loss_weight: float,
) -> Tensor:
    """Checks the arguments and calls the op; ``name`` is the function that the user called."""
    students, teachers, row_weights = _rows(name, student, teacher, weights)
    if not temperature > 0:
        raise ValueError(f"{name}: temperature is {temperature}; expected a positive number")
    dtype = arithmetic_dtype(*students, *teachers)
    if row_weights is None:
        row_weights, totals = [students[0].new_empty(0, dtype=dtype)] * len(students), None
    else:
        row_weights = [weight.detach().to(dtype).contiguous() for weight in row_weights]
        totals = torch.stack([ordered_sum(weight) for weight in row_weights])
    losses, _ = torch.ops.bevkd2.softmax_kl(
        students,
        teachers,
        row_weights,
        totals,
        loss_weight * temperature**2,
        temperature,
        gradients_in_forward(students),
    )
    result: Tensor = losses[0] if isinstance(student, Tensor) else losses
    return result


def _rows(
    name: str, student: Features, teacher: Features, weights: Features | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None]:
    """Checks the features and returns them as views (B, rows, entries), with the weights (B, rows)."""
    students, teachers = _as_list(student), _as_list(teacher)
    given = None if weights is None else _as_list(weights)
    check_levels(name, students, teachers)
    if given is not None and len(given) != len(students):
        raise ValueError(f"{name}: {len(given)} weights for {len(students)} levels; expected one per level")
    for level, (ours, theirs) in enumerate(zip(students, teachers, strict=True)):
        check_pair(name, ours, theirs, weights=given[level] if given is not None else None)
        if ours.dim() != 4 or ours.shape != theirs.shape:
            raise ValueError(
                f"{name}: student is {tuple(ours.shape)}, teacher {tuple(theirs.shape)}; expected the same "
                "(B, C, H, W)"
            )
    row_weights = None
    if given is not None:
        row_weights = [_row_weights(name, weight, ours) for weight, ours in zip(given, students, strict=True)]
    over_channels = name == "pixel_wise_kl"
    return (
        [_softmaxes(features, over_channels) for features in students],
        [_softmaxes(features.detach(), over_channels) for features in teachers],
        row_weights,
    )


def _row_weights(name: str, weights: Tensor, features: Tensor) -> Tensor:
    """Returns the weights of a level as (B, rows): its channels, or its pixels."""
    batch, channels, height, width = features.shape
    if name == "channel_wise_kl":
        if tuple(weights.shape) in ((channels,), (batch, channels)):
            return weights.expand(batch, channels)
        expected = f"(C,) or (B, C) = {(batch, channels)}"
    else:
        if tuple(weights.shape) == (batch, height, width):
            return weights.flatten(1)
        expected = f"(B, H, W) = {(batch, height, width)}"
    raise ValueError(f"{name}: weights are {tuple(weights.shape)}; expected {expected}")


def _as_list(features: Features) -> list[Tensor]:
    """Returns a tensor as a list of one level."""
    return [features] if isinstance(features, Tensor) else list(features)


def _softmaxes(features: Tensor, over_channels: bool) -> Tensor:
    """Returns (B, C, H, W) as (B, C, H * W), or as its transpose; a view for contiguous and channels-last."""
    flat = features.flatten(2)
    return flat.transpose(1, 2) if over_channels else flat


@torch.library.register_fake("bevkd2::softmax_kl")
def _fake(
    student: list[Tensor],
    teacher: list[Tensor],
    weights: list[Tensor],
    totals: Tensor | None,
    factor: float,
    temperature: float,
    need_grad: bool,
) -> tuple[Tensor, list[Tensor]]:
    grads = [torch.empty_like(level) for level in student] if need_grad else []
    return student[0].new_empty(len(student), dtype=arithmetic_dtype(*student, *teacher)), grads


@torch.library.register_fake("bevkd2::softmax_kl_backward")
def _fake_backward(
    grad_losses: Tensor,
    student: list[Tensor],
    teacher: list[Tensor],
    weights: list[Tensor],
    totals: Tensor | None,
    factor: float,
    temperature: float,
) -> list[Tensor]:
    return [torch.empty_like(level) for level in student]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    student, teacher, weights, totals, ctx.factor, ctx.temperature, ctx.saved = inputs
    ctx.levels = len(student)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1])
    if ctx.saved:
        ctx.save_for_backward(*output[1])
    else:
        ctx.save_for_backward(*student, *teacher, *weights, totals)


def _backward(ctx: Any, grad_losses: Tensor | None, _: Any) -> tuple[Any, ...]:
    refuse_second_derivative(_OP)
    none = [None] * ctx.levels
    grads: Any = none
    if grad_losses is not None and ctx.saved:
        grads = scaled_by_upstream(ctx.saved_tensors, grad_losses)
    elif grad_losses is not None:
        *features, totals = ctx.saved_tensors
        student, teacher, weights = (features[i * ctx.levels : (i + 1) * ctx.levels] for i in range(3))
        grads = torch.ops.bevkd2.softmax_kl_backward(
            grad_losses, student, teacher, weights, totals, ctx.factor, ctx.temperature
        )
    return grads, none, none, None, None, None, None


torch.library.register_autograd("bevkd2::softmax_kl", _backward, setup_context=_setup_context)
