"""L2 losses over the cells that a mask counts, of one tensor or of several in one launch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import check_levels
from .l2_reductions import Reduction, check_cells, reduction_scale
from .precision import arithmetic_dtype, ordered_sum
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
    """Computes the L2 distance over the cells that the mask counts.

    Args:
        student: (B, cells.., entries..), or a list of L such tensors of one dtype.
        teacher: the same shapes.
        mask: (B, cells..) bool or non-negative weights, for all tensors; ``None`` counts every cell of
            (B, N).
        reduction: ``"sum"``, ``"cell"``, ``"mean"`` or ``"norm"``; see :mod:`bevkd2.ops.l2_reductions`.
        loss_weight: factor of the loss.

    Returns:
        A scalar, or (L,) for a list; float32 (float64 if an input is).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or an unknown reduction.
        RuntimeError: a CUDA tensor, but the CUDA ops are not built.
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
    """Computes the L2 distance of softmaxed attention weights (structured distillation, Eq. 4-6).

    In spatial cross-attention a BEV query has the same weights for all cameras. A sum over the visible
    (camera, query) pairs is therefore a sum over queries, weighted by the number of cameras that see each:
    pass that number as the mask, or a bool mask to count each visible query once.

    Args:
        student: (B, N, H, L, P) weights of H heads, L levels and P points, with further dimensions after N
            if there are any; or a list of layers.
        teacher: the same shapes.
        mask: (B, N) bool or non-negative weights, for all layers; ``None`` counts all.
        reduction: ``"sum"``, ``"cell"``, ``"mean"`` or ``"norm"``; see :mod:`bevkd2.ops.l2_reductions`.
        loss_weight: factor of the loss.

    Returns:
        A scalar, or one number per layer of a list; float32 (float64 if an input is).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or an unknown reduction.
        RuntimeError: a CUDA tensor, but the CUDA ops are not built.
    """
    for layer in [student] if isinstance(student, Tensor) else student:
        if layer.dim() < 4:
            raise ValueError(
                f"attention_l2: student is {tuple(layer.shape)}; expected (B, N, .., heads, levels, points)"
            )
    return _l2("attention_l2", student, teacher, mask, reduction, loss_weight)


def _l2(
    name: str, student: Levels, teacher: Levels, mask: Tensor | None, reduction: str, loss_weight: float
) -> Tensor:
    """Returns the loss as the caller wants it: a scalar for tensors, (L,) for lists."""
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
    """Returns the losses (L,) of lists of tensors."""
    check_levels(name, student, teacher)
    for ours, theirs in zip(student, teacher, strict=True):
        check_cells(name, ours, theirs, mask, reduction)
    cells = [min(2, level.dim()) if mask is None else mask.dim() for level in student]
    dtype = arithmetic_dtype(*student, *teacher)
    weights = None if mask is None else mask.to(dtype).reshape(mask.shape[0], mask.shape[1:].numel())
    averaged = reduction in ("cell", "mean")  # the others do not divide by it
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
    """Returns (B, cells.., entries..) as (B, entries, cells)."""
    shape = level.shape
    return level.reshape(shape[0], shape[1:cells].numel(), shape[cells:].numel()).transpose(1, 2)
