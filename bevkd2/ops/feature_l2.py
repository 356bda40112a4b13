"""Weighted feature imitation over all levels of a neck in one launch (depth-guided distillation, Eq. 2-4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .loss_arguments import check_levels
from .precision import widen
from .weighted_l2 import weighted_l2

_OP = "feature_l2"
Maps = Tensor | Sequence[Tensor]


def feature_l2(
    student: Maps,
    teacher: Maps,
    weights: Tensor | Sequence[Tensor | None] | None = None,
    cells: Tensor | None = None,
    *,
    channel_weights: Sequence[Tensor | None] | Tensor | None = None,
    loss_weight: float = 1.0,
) -> Tensor:
    """Weighted squared distance of feature maps (Eq. 2 without weights, Eq. 4 with them).

    mean over the batch of 1 / (C * cells) * sum over cells and channels of weights * (student - teacher)^2

    Arithmetic is in float32 (float64 where an input is), whatever autocast does; the teacher gets no
    gradient; cells of weight zero may hold anything, NaN included.

    Args:
        student: (B, C, H, W), or L levels of one dtype, contiguous or channels-last.
        teacher: the same shapes.
        weights: (B, H, W), not negative; for L levels as many, or (B, pixels of all levels) as
            :func:`draw_weights` makes them; None: 1 everywhere.
        cells: (B,), or (L, B): the number of cells that Eq. 4's N_l counts; None: H * W.
        channel_weights: (C,) or (B, C), not negative; one a level.
        loss_weight: a factor.

    Returns:
        A scalar, or (L,) for L levels; float32 (float64 where an input is).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    if isinstance(student, Tensor) and isinstance(teacher, Tensor):
        return feature_l2(
            [student],
            [teacher],
            _listed(weights),
            None if cells is None else cells[None],
            channel_weights=channel_weights,
            loss_weight=loss_weight,
        )[0]
    ours, theirs = list(student), list(teacher)
    check_levels(_OP, ours, theirs)
    for level, target in zip(ours, theirs, strict=True):
        if level.dim() != 4 or level.shape != target.shape:
            raise ValueError(
                f"{_OP}: student is {tuple(level.shape)}, teacher {tuple(target.shape)}; expected the same "
                "(B, C, H, W)"
            )
    scale = _scale(ours, theirs, cells, loss_weight)
    return weighted_l2(ours, theirs, scale, weights=weights, channel_weights=_listed(channel_weights))


def _listed(weights: Tensor | Sequence[Tensor | None] | None) -> Sequence[Tensor | None] | None:
    return [weights] if isinstance(weights, Tensor) else weights


def _scale(student: list[Tensor], teacher: list[Tensor], cells: Tensor | None, loss_weight: float) -> Tensor:
    """loss_weight / (B * C * cells) of every level and sample, (L, B)."""
    first, batch = student[0], student[0].shape[0]
    wide = torch.float64 in (first.dtype, teacher[0].dtype)
    expected = (len(student), batch)
    if cells is not None and (tuple(cells.shape) != expected or cells.device != first.device):
        raise ValueError(
            f"{_OP}: cells are {tuple(cells.shape)} on {cells.device}; expected (levels, B) = {expected} on "
            f"{first.device}"
        )
    rows = []
    for l, level in enumerate(student):
        share = loss_weight / max(1, batch * level.shape[1])
        row = first.new_full((batch,), share, dtype=torch.float64 if wide else torch.float32)
        rows.append(row / (max(1, level.shape[2:].numel()) if cells is None else cells[l].clamp(min=1)))
    return torch.stack(rows)


def feature_l2_reference(
    student: Tensor, teacher: Tensor, weights: Tensor | None = None, cells: Tensor | None = None
) -> Tensor:
    """The same for one level in plain torch: what the tests hold the op to."""
    batch, channels, height, width = student.shape
    difference = widen(student) - widen(teacher.detach())
    if weights is not None:
        difference = difference.masked_fill((weights == 0)[:, None], 0)
    squares = difference.square().sum(1)
    if weights is not None:
        squares = squares * weights.to(squares.dtype)
    counted = squares.new_full((batch,), height * width) if cells is None else cells.to(squares.dtype)
    if batch == 0:
        return squares.sum()
    return (squares.flatten(1).sum(1) / (channels * counted.clamp(min=1))).mean()
