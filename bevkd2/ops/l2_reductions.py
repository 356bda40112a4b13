"""The reductions of the masked L2 losses, and their plain-torch form.

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

from .precision import widen

Reduction = Literal["sum", "cell", "mean", "norm"]


def check_cells(name: str, student: Tensor, teacher: Tensor, mask: Tensor | None, reduction: str) -> None:
    """The shapes follow the rule above, the reduction is one of the four, the mask is on the device."""
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
    if mask is not None and mask.device != student.device:
        raise ValueError(
            f"{name}: mask is on {mask.device}, student on {student.device}; move one to the other"
        )


def reduction_scale(
    reduction: str, counted: Tensor | int, entries: int, loss_weight: float, like: Tensor
) -> Tensor:
    """What a reduction multiplies each sample's sum by (its root, for "norm").

    Args:
        reduction: one of the four.
        counted: weight of all cells of the batch; a scalar tensor stays on its device.
        entries: of a cell.
        loss_weight: a factor.
        like: (B, ..) whose dtype and device the result has.

    Returns:
        (B,).
    """
    batch = like.shape[0]
    if reduction in ("sum", "norm"):
        return like.new_full((batch,), loss_weight / max(1, batch))
    share = loss_weight / (max(1, entries) if reduction == "mean" else 1)
    if isinstance(counted, Tensor):
        return (share / counted.where(counted > 0, 1)).to(like.dtype).expand(batch)
    return like.new_full((batch,), share / max(1, counted))


def l2_reference(student: Tensor, teacher: Tensor, mask: Tensor | None, reduction: str) -> Tensor:
    """The reductions in plain torch, as the text above says them: what the tests hold the ops to."""
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
