"""L2 of the BEV response, compiled: both embeddings are read once, and only differences of cells are kept."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from .arguments import refuse_double_backward
from .l2_reductions import Reduction, l2_reference
from .loss_arguments import check_pair
from .precision import widen
from .saved_gradients import refuse_second_derivative

_REDUCTIONS = {"sum": 0, "cell": 1, "mean": 1, "norm": 2}  # a cell has one entry, so "cell" is "mean"


def bev_response_l2(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    reduction: Reduction,
    loss_weight: float = 1.0,
) -> Tensor:
    """L2 between BEV responses, the mean absolute feature over channels (structured distillation, Eq. 7-8).

    Arithmetic is float32 (float64 where an input is), whatever autocast does. The embeddings may differ in
    dtype and in memory layout. The teacher and the mask get no gradient, and at a feature of zero the
    gradient is zero, as abs() has it.

    Args:
        student: (B, N, Cs) BEV embedding, or (B, Cs, H, W).
        teacher: (B, N, Ct), or (B, Ct, H, W); the widths may differ.
        mask: (B, N), or (B, H, W): bool, the cells that count, or weights that are not negative; None counts
            all. What it leaves out may be anything, NaN included.
        reduction: "sum", "cell", "mean" or "norm"; see l2_reductions. A cell has one entry, so "cell" is
            "mean".
        loss_weight: a factor.

    Returns:
        A scalar, float32 (float64 where an input is).

    Raises:
        ValueError: shapes that do not fit, or another reduction.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(
            f"bev_response_l2: reduction is {reduction!r}; expected one of {get_args(Reduction)}"
        )
    check_pair("bev_response_l2", student, teacher, mask=mask)
    ours, theirs = _cells("student", student), _cells("teacher", teacher.detach())
    if student.dim() != teacher.dim() or ours.shape[:2] != theirs.shape[:2]:
        raise ValueError(
            f"bev_response_l2: student is {tuple(student.shape)}, teacher {tuple(teacher.shape)}; expected "
            "(B, N, C) with the same B and N, or (B, C, H, W) with the same B, H and W"
        )
    loss, _, _ = torch.ops.bevkd2.bev_response_l2(
        ours,
        theirs,
        None if mask is None else _weights(mask, student, ours, theirs),
        _REDUCTIONS[reduction],
        loss_weight,
        torch.is_grad_enabled() and student.requires_grad,
    )
    return loss


def _cells(who: str, embedding: Tensor) -> Tensor:
    """(B, N, C): a view of whatever layout."""
    if embedding.dim() == 4:
        return embedding.flatten(2).transpose(1, 2)
    if embedding.dim() != 3:
        raise ValueError(
            f"bev_response_l2: {who} is {tuple(embedding.shape)}; expected (B, N, C) or (B, C, H, W)"
        )
    return embedding


def _weights(mask: Tensor, student: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    cells = student.shape[:2] if student.dim() == 3 else (student.shape[0], *student.shape[2:])
    if mask.shape != cells:
        raise ValueError(
            f"bev_response_l2: mask is {tuple(mask.shape)}, student {tuple(student.shape)}; expected the "
            f"cells {tuple(cells)}"
        )
    return mask.detach().flatten(1).to(_wide(ours, theirs)).contiguous()


def _wide(student: Tensor, teacher: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32


@torch.library.register_fake("bevkd2::bev_response_l2")
def _fake(
    student: Tensor, teacher: Tensor, weights: Tensor | None, reduction: int, factor: float, need_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, samples = _wide(student, teacher), student.shape[0] if need_grad else 0
    return (
        student.new_empty((), dtype=dtype),
        student.new_empty((samples, student.shape[1]), dtype=dtype),
        student.new_empty((samples,), dtype=dtype),
    )


@torch.library.register_fake("bevkd2::bev_response_l2_backward")
def _fake_backward(grad_loss: Tensor, student: Tensor, differences: Tensor, scales: Tensor) -> Tensor:
    return torch.empty_like(student)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(inputs[0], *output[1:])


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    refuse_second_derivative("bev_response_l2")
    grad = None
    if grad_loss is not None:
        grad = torch.ops.bevkd2.bev_response_l2_backward(grad_loss, *ctx.saved_tensors)
    return grad, None, None, None, None, None


torch.library.register_autograd("bevkd2::bev_response_l2", _backward, setup_context=_setup_context)
refuse_double_backward("bev_response_l2_backward")


def bev_response_l2_reference(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, reduction: Reduction
) -> Tensor:
    """The same of (B, N, C) in plain torch: what the tests hold the op to."""
    ours, theirs = (widen(embedding).abs().mean(-1) for embedding in (student, teacher))
    return l2_reference(ours, theirs, mask, reduction)
