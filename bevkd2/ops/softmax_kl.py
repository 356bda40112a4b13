"""KL divergence of softmaxes over positions (channel-wise) or over channels (pixel-wise).

Arithmetic is float32 for any input (float64 where an input is), whatever autocast does. Features may lie in
memory as NCHW or channels-last and may differ in dtype; nothing of their size is copied. The teacher and the
weights get no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import refuse_double_backward
from .loss_arguments import check_levels, check_pair
from .precision import ordered_sum, widen
from .saved_gradients import gradients_in_forward, refuse_second_derivative, scaled_by_upstream

Features = Tensor | Sequence[Tensor]


def channel_wise_kl(
    student: Features,
    teacher: Features,
    weights: Features | None = None,
    *,
    temperature: float = 1.0,
    loss_weight: float = 1.0,
) -> Tensor:
    """Channel-wise distillation: every channel, softmaxed over its positions, follows the teacher's.

    loss_weight * T^2 * sum over channels of w * KL(teacher || student) / sum over channels of w, over the
    whole batch; unweighted that is Eq. 4 and 5 of Channel-wise Knowledge Distillation for Dense Prediction
    (arXiv 2011.13256), T^2 / C times the sum over channels, as a mean over the batch.

    Args:
        student: (B, C, H, W) features, or one for each level.
        teacher: the same shapes.
        weights: (C,) or (B, C) for each level, not negative; a channel of weight zero may hold anything.
        temperature: T, which divides both features.
        loss_weight: a factor.

    Returns:
        A scalar for one tensor, (L,) for a list of levels; float32 (float64 where an input is).

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not positive.
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
    """Pixel-wise distillation: at every position the softmax over channels follows the teacher's.

    loss_weight * T^2 * sum over pixels of w * KL(teacher || student) / sum over pixels of w, over the whole
    batch; unweighted and with T = 1 that is Eq. 2 of Structured Knowledge Distillation for Semantic
    Segmentation (arXiv 1903.04197), as its code computes it, as a mean over the batch.

    Args:
        student: (B, C, H, W) features or class logits, or one for each level.
        teacher: the same shapes.
        weights: (B, H, W) for each level, not negative; a pixel of weight zero may hold anything.
        temperature: T, which divides both features.
        loss_weight: a factor.

    Returns:
        A scalar for one tensor, (L,) for a list of levels; float32 (float64 where an input is).

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not positive.
    """
    return _kl("pixel_wise_kl", student, teacher, weights, temperature, loss_weight)


def channel_wise_kl_reference(
    student: Features, teacher: Features, weights: Features | None = None, *, temperature: float = 1.0
) -> Tensor:
    """The same in plain torch, which the tests hold the op to; (L,)."""
    return _reference("channel_wise_kl", student, teacher, weights, temperature)


def pixel_wise_kl_reference(
    student: Features, teacher: Features, weights: Features | None = None, *, temperature: float = 1.0
) -> Tensor:
    """The same in plain torch, which the tests hold the op to; (L,)."""
    return _reference("pixel_wise_kl", student, teacher, weights, temperature)


def _kl(
    name: str,
    student: Features,
    teacher: Features,
    weights: Features | None,
    temperature: float,
    loss_weight: float,
) -> Tensor:
    students, teachers, row_weights = _rows(name, student, teacher, weights)
    if not temperature > 0:
        raise ValueError(f"{name}: temperature is {temperature}; expected a positive number")
    wide = torch.float64 if torch.float64 in {t.dtype for t in (*students, *teachers)} else torch.float32
    totals = None
    if row_weights is not None:
        row_weights = [weight.detach().to(wide).contiguous() for weight in row_weights]
        totals = torch.stack([ordered_sum(weight) for weight in row_weights])
    losses, _ = torch.ops.bevkd2.softmax_kl(
        students,
        teachers,
        row_weights if row_weights is not None else [students[0].new_empty(0, dtype=wide)] * len(students),
        totals,
        loss_weight * temperature**2,
        temperature,
        gradients_in_forward(students),
    )
    return losses[0] if isinstance(student, Tensor) else losses


def _rows(
    name: str, student: Features, teacher: Features, weights: Features | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None]:
    """Views (B, rows, entries) of both, and weights (B, rows), checked."""
    students, teachers = _as_list(student), _as_list(teacher)
    given = None if weights is None else _as_list(weights)
    check_levels(name, students, teachers)
    if given is not None and len(given) != len(students):
        raise ValueError(f"{name}: {len(given)} weights for {len(students)} levels; expected one a level")
    for level, (ours, theirs) in enumerate(zip(students, teachers, strict=True)):
        check_pair(name, ours, theirs, weights=given[level] if given is not None else None)
        if ours.dim() != 4 or ours.shape != theirs.shape:
            raise ValueError(
                f"{name}: student is {tuple(ours.shape)}, teacher {tuple(theirs.shape)}; expected the same "
                "(B, C, H, W)"
            )
    row_weights = None if given is None else [
        _row_weights(name, weight, ours) for weight, ours in zip(given, students, strict=True)
    ]  # fmt: skip
    over_channels = name == "pixel_wise_kl"
    return (
        [_softmaxes(features, over_channels) for features in students],
        [_softmaxes(features.detach(), over_channels) for features in teachers],
        row_weights,
    )


def _row_weights(name: str, weights: Tensor, features: Tensor) -> Tensor:
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
    return [features] if isinstance(features, Tensor) else list(features)


def _softmaxes(features: Tensor, over_channels: bool) -> Tensor:
    """(B, C, H, W) -> (B, C, H * W), or its transpose: a view of NCHW and of channels-last memory."""
    flat = features.flatten(2)
    return flat.transpose(1, 2) if over_channels else flat


def _reference(
    name: str, student: Features, teacher: Features, weights: Features | None, temperature: float
) -> Tensor:
    students, teachers, row_weights = _rows(name, student, teacher, weights)
    losses = []
    for level, (ours, theirs) in enumerate(zip(students, teachers, strict=True)):
        ours = (widen(ours) / temperature).log_softmax(-1)
        theirs = (widen(theirs) / temperature).log_softmax(-1)
        divergence = temperature**2 * (theirs.exp() * (theirs - ours)).sum(-1)
        weight = torch.ones_like(divergence) if row_weights is None else row_weights[level].to(divergence)
        total = weight.sum()
        counted = (divergence * weight).masked_fill(weight == 0, 0)
        losses.append(counted.sum() / total.where(total > 0, 1))
    return torch.stack(losses)


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
    wide = torch.float64 if torch.float64 in {t.dtype for t in (*student, *teacher)} else torch.float32
    grads = [torch.empty_like(level) for level in student] if need_grad else []
    return student[0].new_empty(len(student), dtype=wide), grads


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


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, list[Tensor]]) -> None:
    student, teacher, weights, totals, ctx.factor, ctx.temperature, ctx.saved = inputs
    ctx.levels = len(student)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1])
    if ctx.saved:
        ctx.save_for_backward(*output[1])
    else:
        ctx.save_for_backward(*student, *teacher, *weights, totals)


def _backward(ctx: Any, grad_losses: Tensor | None, _: Any) -> tuple[Any, ...]:
    refuse_second_derivative("softmax_kl")
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
refuse_double_backward("softmax_kl_backward")
