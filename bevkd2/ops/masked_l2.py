"""L2 over the cells that count, for one tensor or for several in one launch (see l2_reductions)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .l2_reductions import Reduction, check_cells, l2_reference, reduction_scale
from .loss_arguments import check_levels
from .precision import ordered_sum
from .weighted_l2 import weighted_l2

Levels = Tensor | Sequence[Tensor]


def masked_l2(
    student: Levels,
    teacher: Levels,
    mask: Tensor | None = None,
    *,
    reduction: Reduction,
    loss_weight: float = 1.0,
) -> Tensor:
    """L2 between two tensors, or between each of several, over the cells that count.

    Args:
        student: (B, cells.., entries..), or a list of such tensors, of one dtype.
        teacher: the same shapes.
        mask: (B, cells..) bool or non-negative weights, for all tensors; None counts every cell of (B, N).
        reduction: "sum", "cell", "mean" or "norm"; see l2_reductions.
        loss_weight: a factor.

    Returns:
        A scalar, or (L,) for a list of L; float32 (float64 where an input is).

    Raises:
        ValueError: shapes that do not fit, or another reduction.
    """
    return _l2("masked_l2", student, teacher, mask, reduction, loss_weight)


def attention_l2(
    student: Levels,
    teacher: Levels,
    mask: Tensor | None = None,
    *,
    reduction: Reduction,
    loss_weight: float = 1.0,
) -> Tensor:
    """L2 between softmaxed attention weights (structured distillation, Eq. 4-6), of a layer or of several.

    In spatial cross-attention a BEV query has the same weights for all cameras. A sum over the visible
    (camera, query) pairs is thus one over queries, weighed by the number of cameras that see them: give that
    number as the mask, or a bool mask to count each seen query once.

    Args:
        student: (B, N, H, L, P); further dimensions may follow N. H heads, L levels, P points. Or a list.
        teacher: the same shapes.
        mask: (B, N) bool or non-negative weights, for all layers; None counts all.
        reduction: "sum", "cell", "mean" or "norm"; see l2_reductions.
        loss_weight: a factor.

    Returns:
        A scalar, or one for each layer of a list; float32 (float64 where an input is).

    Raises:
        ValueError: shapes that do not fit, or another reduction.
    """
    for layer in [student] if isinstance(student, Tensor) else student:
        if layer.dim() < 4:
            raise ValueError(
                f"attention_l2: student is {tuple(layer.shape)}; expected (B, N, .., heads, levels, points)"
            )
    return _l2("attention_l2", student, teacher, mask, reduction, loss_weight)


def masked_l2_reference(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, reduction: Reduction
) -> Tensor:
    """Both losses of one tensor in plain torch: what the tests hold them to."""
    check_cells("masked_l2", student, teacher, mask, reduction)
    return l2_reference(student, teacher, mask, reduction)


def _l2(
    name: str, student: Levels, teacher: Levels, mask: Tensor | None, reduction: str, loss_weight: float
) -> Tensor:
    if isinstance(student, Tensor) != isinstance(teacher, Tensor):
        raise ValueError(f"{name}: one of student and teacher is a list, the other is not")
    if isinstance(student, Tensor) and isinstance(teacher, Tensor):
        return _l2_of_levels(name, [student], [teacher], mask, reduction, loss_weight)[0]
    return _l2_of_levels(name, list(student), list(teacher), mask, reduction, loss_weight)


def _l2_of_levels(
    name: str,
    student: list[Tensor],
    teacher: list[Tensor],
    mask: Tensor | None,
    reduction: str,
    loss_weight: float,
) -> Tensor:
    check_levels(name, student, teacher)
    for ours, theirs in zip(student, teacher, strict=True):
        check_cells(name, ours, theirs, mask, reduction)
    cells = [min(2, level.dim()) if mask is None else mask.dim() for level in student]
    dtype = torch.float64 if torch.float64 in (student[0].dtype, teacher[0].dtype) else torch.float32
    weights = None if mask is None else mask.to(dtype).reshape(mask.shape[0], mask.shape[1:].numel())
    averaged = reduction in ("cell", "mean")  # the others do not ask what counts
    total = ordered_sum(weights) if averaged and weights is not None else None
    scales = []
    for level, dims in zip(student, cells, strict=True):
        counted = level.shape[:dims].numel() if total is None else total
        like = level.new_empty(level.shape[0], dtype=dtype)
        scales.append(reduction_scale(reduction, counted, level.shape[dims:].numel(), loss_weight, like))
    return weighted_l2(
        [_channels_last(level, dims) for level, dims in zip(student, cells, strict=True)],
        [_channels_last(level, dims) for level, dims in zip(teacher, cells, strict=True)],
        torch.stack(scales),
        weights=None if weights is None else [weights] * len(student),
        norm=reduction == "norm",
    )


def _channels_last(level: Tensor, cells: int) -> Tensor:
    """(B, cells.., entries..) as (B, entries, cells)."""
    shape = level.shape
    return level.reshape(shape[0], shape[1:cells].numel(), shape[cells:].numel()).transpose(1, 2)
