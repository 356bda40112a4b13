"""Squared distance of feature maps that are normalised per channel: the loss of PKD.

Arithmetic is float32 (float64 if an input is), whatever autocast does; student and teacher may differ in
dtype. The gradient passes through the student's mean and standard deviation; the teacher gets none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import check_levels
from .gradients import gradients_in_forward, refuse_second_derivative, scaled_by_upstream
from .precision import arithmetic_dtype

_OP = "normalized_l2"
Maps = Tensor | Sequence[Tensor]


def normalized_l2(student: Maps, teacher: Maps, *, epsilon: float = 1e-6, loss_weight: float = 1.0) -> Tensor:
    """Computes half the mean squared distance of features normalised per channel.

    loss = loss_weight / 2 * mean of (norm(student) - norm(teacher))^2, where norm(x) = (x - mean) /
    (std + epsilon), with mean and unbiased standard deviation of each channel over the batch and all pixels.
    It is the loss of PKD (arXiv 2207.02039), as its code computes it: up to epsilon the mean over channels of
    (1 - r) * (n - 1) / n, r the Pearson correlation of student and teacher over the n entries of a channel.
    A constant channel is 0 after normalisation, and its gradient is that of a deviation of 0.

    Args:
        student: (B, C, H, W), or a list of L levels. Other layouts than contiguous are copied.
        teacher: the same shapes.
        epsilon: added to the standard deviations.
        loss_weight: factor of the loss.

    Returns:
        A scalar for one tensor, (L,) for a list; float32 (float64 if an input is).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, a channel with fewer than two entries, or an
            epsilon that is not positive.
        RuntimeError: a CUDA tensor, but the CUDA ops are not built.
    """
    if isinstance(student, Tensor) and isinstance(teacher, Tensor):
        return normalized_l2([student], [teacher], epsilon=epsilon, loss_weight=loss_weight)[0]
    students, teachers = list(student), list(teacher)
    _check(students, teachers, epsilon)
    losses: Tensor
    losses, _ = torch.ops.bevkd2.normalized_l2(
        [level.flatten(2) for level in students],
        [level.detach().flatten(2) for level in teachers],
        loss_weight,
        epsilon,
        gradients_in_forward(students),
    )
    return losses


def _check(student: list[Tensor], teacher: list[Tensor], epsilon: float) -> None:
    check_levels(_OP, student, teacher)
    if not epsilon > 0:
        raise ValueError(f"{_OP}: epsilon is {epsilon}; expected a positive number")
    for ours, theirs in zip(student, teacher, strict=True):
        if ours.dim() != 4 or ours.shape != theirs.shape:
            raise ValueError(
                f"{_OP}: student is {tuple(ours.shape)}, teacher {tuple(theirs.shape)}; expected the same "
                "(B, C, H, W)"
            )
        batch, _, height, width = ours.shape
        if batch * height * width < 2:
            raise ValueError(
                f"{_OP}: student is {tuple(ours.shape)}; a channel needs at least two entries over batch "
                "and pixels for its standard deviation"
            )


@torch.library.register_fake("bevkd2::normalized_l2")
def _fake(
    student: list[Tensor], teacher: list[Tensor], factor: float, epsilon: float, need_grad: bool
) -> tuple[Tensor, list[Tensor]]:
    grads = [torch.empty_like(level) for level in student] if need_grad else []
    return student[0].new_empty(len(student), dtype=arithmetic_dtype(*student, *teacher)), grads


@torch.library.register_fake("bevkd2::normalized_l2_backward")
def _fake_backward(
    grad_losses: Tensor, student: list[Tensor], teacher: list[Tensor], factor: float, epsilon: float
) -> list[Tensor]:
    return [torch.empty_like(level) for level in student]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    student, teacher, ctx.factor, ctx.epsilon, ctx.made_in_forward = inputs
    ctx.levels = len(student)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1])
    if ctx.made_in_forward:
        ctx.save_for_backward(*output[1])
    else:
        ctx.save_for_backward(*student, *teacher)


def _backward(ctx: Any, grad_losses: Tensor | None, *unused: object) -> tuple[Any, ...]:
    refuse_second_derivative(_OP)
    none = [None] * ctx.levels
    grads: Any = none
    if grad_losses is not None and ctx.made_in_forward:
        grads = scaled_by_upstream(ctx.saved_tensors, grad_losses)
    elif grad_losses is not None:
        student, teacher = ctx.saved_tensors[: ctx.levels], ctx.saved_tensors[ctx.levels :]
        grads = torch.ops.bevkd2.normalized_l2_backward(
            grad_losses, list(student), list(teacher), ctx.factor, ctx.epsilon
        )
    return grads, none, None, None, None


torch.library.register_autograd("bevkd2::normalized_l2", _backward, setup_context=_setup_context)
