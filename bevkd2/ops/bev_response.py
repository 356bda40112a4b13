"""L2 between BEV responses: the op reads both embeddings once and keeps one difference per cell."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from .arguments import check_pair
from .gradients import refuse_second_derivative
from .l2_reductions import Reduction
from .precision import arithmetic_dtype

_OP = "bev_response_l2"
_REDUCTIONS = {"sum": 0, "cell": 1, "mean": 1, "norm": 2}  # a cell has one entry, so "cell" is "mean"


def bev_response_l2(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    reduction: Reduction,
    loss_weight: float = 1.0,
) -> Tensor:
    """Computes the L2 distance of BEV responses (structured distillation, Eq. 7-8).

    The response of a cell is the mean over channels of the absolute feature. Arithmetic is float32 (float64
    if an input is), whatever autocast does. The embeddings may differ in dtype and in memory layout. The
    teacher and the mask get no gradient; at a feature of zero the gradient is zero, as for ``abs``.

    Args:
        student: (B, N, Cs) BEV embedding, or (B, Cs, H, W).
        teacher: (B, N, Ct), or (B, Ct, H, W); the widths may differ.
        mask: (B, N), or (B, H, W): bool, the cells that count, or non-negative weights; ``None`` counts all.
            Cells of weight 0 are ignored, even if NaN.
        reduction: ``"sum"``, ``"cell"``, ``"mean"`` or ``"norm"``; see :mod:`bevkd2.ops.l2_reductions`. A
            cell has one entry, so ``"cell"`` equals ``"mean"``.
        loss_weight: factor of the loss.

    Returns:
        A scalar, float32 (float64 if an input is).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or an unknown reduction.
        RuntimeError: a CUDA tensor, but the CUDA ops are not built.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{_OP}: reduction is {reduction!r}; expected one of {get_args(Reduction)}")
    check_pair(_OP, student, teacher, mask=mask)
    ours, theirs = _cells("student", student), _cells("teacher", teacher.detach())
    if student.dim() != teacher.dim() or ours.shape[:2] != theirs.shape[:2]:
        raise ValueError(
            f"{_OP}: student is {tuple(student.shape)}, teacher {tuple(teacher.shape)}; expected "
            "(B, N, C) with the same B and N, or (B, C, H, W) with the same B, H and W"
        )
    loss: Tensor
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
    """Returns the embedding as (B, N, C), a view whatever the layout."""
    if embedding.dim() == 4:
        return embedding.flatten(2).transpose(1, 2)
    if embedding.dim() != 3:
        raise ValueError(f"{_OP}: {who} is {tuple(embedding.shape)}; expected (B, N, C) or (B, C, H, W)")
    return embedding


def _weights(mask: Tensor, student: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """Returns the mask as contiguous weights (B, N) in the arithmetic dtype."""
    cells = student.shape[:2] if student.dim() == 3 else (student.shape[0], *student.shape[2:])
    if mask.shape != cells:
        raise ValueError(
            f"{_OP}: mask is {tuple(mask.shape)}, student {tuple(student.shape)}; expected the "
            f"cells {tuple(cells)}"
        )
    return mask.detach().flatten(1).to(arithmetic_dtype(ours, theirs)).contiguous()


@torch.library.register_fake("bevkd2::bev_response_l2")
def _fake(
    student: Tensor, teacher: Tensor, weights: Tensor | None, reduction: int, factor: float, need_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = arithmetic_dtype(student, teacher)
    samples = student.shape[0] if need_grad else 0
    return (
        student.new_empty((), dtype=dtype),
        student.new_empty((samples, student.shape[1]), dtype=dtype),
        student.new_empty((samples,), dtype=dtype),
    )


@torch.library.register_fake("bevkd2::bev_response_l2_backward")
def _fake_backward(grad_loss: Tensor, student: Tensor, differences: Tensor, scales: Tensor) -> Tensor:
    return torch.empty_like(student)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(inputs[0], *output[1:])


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    refuse_second_derivative(_OP)
    grad = None
    if grad_loss is not None:
        grad = torch.ops.bevkd2.bev_response_l2_backward(grad_loss, *ctx.saved_tensors)
    return grad, None, None, None, None, None


torch.library.register_autograd("bevkd2::bev_response_l2", _backward, setup_context=_setup_context)
