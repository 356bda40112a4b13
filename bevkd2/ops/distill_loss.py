"""L2 distillation losses in plain torch.

All share one shape rule and one set of reductions. The first dimension is the sample. The mask covers the
leading dimensions, and each of its elements is a cell: mask.shape == student.shape[:mask.dim()]; without a
mask the cells are the first two dimensions. What is left of the shape are a cell's entries. With
d = student - teacher, over the counted cells (where the mask is true):

  "sum"   sum of d^2 over all cells and entries, divided by the batch size.
  "cell"  sum of d^2 over a cell's entries, then the mean over all counted cells of the batch.
  "mean"  mean of d^2 over all counted entries of the batch.
  "norm"  square root of a sample's sum of d^2 (the un-squared L2 norm), then the mean over the batch. Its
          gradient is taken as zero where the norm is zero.

A mask of numbers weighs d^2, and a cell counts by its weight. No counted cell at all gives a zero that still
has a graph. Arithmetic is in float32 (float64 where an input is), whatever autocast does; the teacher gets no
gradient; what a mask leaves out may be anything, NaN included.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from bevkd2.ops.precision import widen

Reduction = Literal["sum", "cell", "mean", "norm"]


def masked_l2(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, reduction: Reduction
) -> Tensor:
    """L2 between two tensors, over the cells that count.

    Args:
        student: (B, cells.., entries..).
        teacher: the same shape.
        mask: (B, cells..) bool or non-negative weights; None counts every cell of (B, N).
        reduction: "sum", "cell", "mean" or "norm"; see the module's text.

    Returns:
        A scalar, float32 (float64 where an input is).

    Raises:
        ValueError: shapes that do not fit, or another reduction.
    """
    return _l2("masked_l2", student, teacher, mask, reduction)


def attention_l2(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, reduction: Reduction
) -> Tensor:
    """L2 between softmaxed attention weights (structured distillation, Eq. 4-6).

    Args:
        student: (B, N, H, L, P); further dimensions may follow N. H heads, L levels, P points.
        teacher: the same shape.
        mask: (B, N) bool, the cells that count; None counts all.
        reduction: "sum", "cell", "mean" or "norm"; see the module's text.

    Returns:
        A scalar, float32 (float64 where an input is).

    Raises:
        ValueError: shapes that do not fit, or another reduction.
    """
    if student.dim() < 4:
        raise ValueError(
            f"attention_l2: student is {tuple(student.shape)}; expected (B, N, .., heads, levels, points)"
        )
    return _l2("attention_l2", student, teacher, mask, reduction)


def bev_response_l2(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, reduction: Reduction
) -> Tensor:
    """L2 between BEV responses, the mean absolute feature over channels (structured distillation, Eq. 7-8).

    Args:
        student: (B, N, Cs) BEV embedding.
        teacher: (B, N, Ct); the widths may differ.
        mask: (B, N) bool, the cells that count; None counts all.
        reduction: "sum", "cell", "mean" or "norm"; see the module's text. A cell has one
            entry, so "cell" is "mean".

    Returns:
        A scalar, float32 (float64 where an input is).

    Raises:
        ValueError: shapes that do not fit, or another reduction.
    """
    if student.dim() != 3 or teacher.dim() != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"bev_response_l2: student is {tuple(student.shape)}, teacher {tuple(teacher.shape)}; expected "
            "(B, N, C) with the same B and N"
        )
    return _l2("bev_response_l2", _response(student), _response(teacher), mask, reduction)


def _response(embedding: Tensor) -> Tensor:
    return widen(embedding).abs().mean(-1)


def _l2(name: str, student: Tensor, teacher: Tensor, mask: Tensor | None, reduction: str) -> Tensor:
    _check(name, student, teacher, mask, reduction)
    difference = widen(student) - widen(teacher.detach())
    if mask is None:
        cells = min(2, student.dim())
        squares = difference.square()
        counted = difference.new_tensor(float(student.shape[:cells].numel()))
    else:
        cells = mask.dim()
        left_out = (mask == 0).view(*mask.shape, *[1] * (student.dim() - cells))
        weights = mask.to(difference.dtype).view(left_out.shape)
        squares = difference.masked_fill(left_out, 0).square() * weights
        counted = weights.sum()
    if reduction == "norm":
        return _norm(squares.flatten(1).sum(1)).sum() / max(1, student.shape[0])
    total = squares.sum()
    if reduction == "sum":
        return total / max(1, student.shape[0])
    entries = student.shape[cells:].numel() if reduction == "mean" else 1
    return total / (counted.where(counted > 0, 1) * max(1, entries))


def _norm(squares: Tensor) -> Tensor:
    """Square root whose gradient at zero is zero."""
    positive = squares > 0
    return torch.where(positive, squares.where(positive, 1).sqrt(), squares * 0)


def _check(name: str, student: Tensor, teacher: Tensor, mask: Tensor | None, reduction: str) -> None:
    if reduction not in get_args(Reduction):
        raise ValueError(f"{name}: reduction is {reduction!r}; expected one of {get_args(Reduction)}")
    if student.shape != teacher.shape:
        raise ValueError(
            f"{name}: student is {tuple(student.shape)}, teacher {tuple(teacher.shape)}; "
            "they must have the same shape"
        )
    if student.dim() < 1:
        raise ValueError(f"{name}: student is a scalar; expected (B, ..)")
    if mask is not None and (mask.dim() < 1 or mask.shape != student.shape[: mask.dim()]):
        raise ValueError(
            f"{name}: mask is {tuple(mask.shape)}, student {tuple(student.shape)}; the mask must cover the "
            "student's leading dimensions"
        )
