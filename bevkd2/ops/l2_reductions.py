"""Shape rule and reductions of the masked L2 losses.

The first dimension is the sample. The mask covers the leading dimensions, and each of its elements is a cell:
``mask.shape == student.shape[:mask.dim()]``; without a mask the cells are the first two dimensions. The
remaining dimensions are the entries of a cell. With d = student - teacher, over the counted cells (where the
mask is true):

- ``"sum"``: sum of d^2 over all cells and entries, divided by the batch size.
- ``"cell"``: sum of d^2 over the entries of a cell, then the mean over all counted cells of the batch.
- ``"mean"``: mean of d^2 over all counted entries of the batch.
- ``"norm"``: square root of a sample's sum of d^2 (the L2 norm, not squared), then the mean over the batch.
  Its gradient is zero if the norm is zero.

A mask of numbers multiplies d^2, and a cell counts by its weight. If no cell counts, the loss is a zero that
still has a graph. Arithmetic is float32 (float64 if an input is), whatever autocast does. The teacher and the
mask get no gradient; cells of weight 0 are ignored, even if NaN.
"""

from typing import Literal, get_args

from torch import Tensor

Reduction = Literal["sum", "cell", "mean", "norm"]


def check_cells(name: str, student: Tensor, teacher: Tensor, mask: Tensor | None, reduction: str) -> None:
    """Checks that the shapes follow the rule above, and the reduction and the device of the mask.

    Args:
        name: the function that the user called.
        student: (B, cells.., entries..).
        teacher: the same shape.
        mask: (B, cells..), or ``None``.
        reduction: name of a reduction.

    Raises:
        ValueError: shapes or devices that do not fit, or an unknown reduction.
    """
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
    """Returns the factor of each sample's sum (of its square root for ``"norm"``).

    Args:
        reduction: name of a reduction.
        counted: summed weight of all cells of the batch; a scalar tensor stays on its device.
        entries: number of entries of a cell.
        loss_weight: factor of the loss.
        like: (B, ..) tensor that gives the dtype and the device.

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
