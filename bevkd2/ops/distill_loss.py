"""L2 of the BEV response, with the reductions of l2_reductions."""

from torch import Tensor

from .l2_reductions import Reduction, check_cells, l2_reference
from .precision import widen


def bev_response_l2(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, reduction: Reduction
) -> Tensor:
    """L2 between BEV responses, the mean absolute feature over channels (structured distillation, Eq. 7-8).

    Args:
        student: (B, N, Cs) BEV embedding.
        teacher: (B, N, Ct); the widths may differ.
        mask: (B, N) bool, the cells that count; None counts all.
        reduction: "sum", "cell", "mean" or "norm"; see l2_reductions. A cell has one
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
    ours, theirs = _response(student), _response(teacher)
    check_cells("bev_response_l2", ours, theirs, mask, reduction)
    return l2_reference(ours, theirs, mask, reduction)


def _response(embedding: Tensor) -> Tensor:
    return widen(embedding).abs().mean(-1)
