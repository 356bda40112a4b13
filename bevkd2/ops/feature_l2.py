"""Weighted feature imitation of all levels of a neck in one launch (depth-guided distillation, Eq. 2-4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import check_levels
from .precision import arithmetic_dtype
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
    """Computes the weighted squared distance of feature maps (Eq. 2 without weights, Eq. 4 with them).

    loss = mean over the batch of 1 / (C * cells) * sum over cells and channels of
    weights * (student - teacher)^2

    Arithmetic is float32 (float64 if an input is), whatever autocast does. The teacher and the weights get
    no gradient; cells of weight 0 are ignored, even if NaN.

    Args:
        student: (B, C, H, W), or L levels of one dtype, contiguous or channels-last.
        teacher: the same shapes.
        weights: (B, H, W), not negative; for L levels a list of such tensors, or (B, pixels of all levels)
            as :func:`draw_weights` returns them; ``None`` is 1 everywhere.
        cells: (B,), or (L, B) for L levels: the number of cells N_l of Eq. 4; ``None`` is H * W.
        channel_weights: (C,) or (B, C) per level, not negative; ``None`` is 1 everywhere.
        loss_weight: factor of the loss.

    Returns:
        A scalar, or (L,) for L levels; float32 (float64 if an input is).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or weights that require a gradient.
        RuntimeError: a CUDA tensor, but the CUDA ops are not built.
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
    """Returns a tensor as a list of one level, anything else unchanged."""
    return [weights] if isinstance(weights, Tensor) else weights


def _scale(student: list[Tensor], teacher: list[Tensor], cells: Tensor | None, loss_weight: float) -> Tensor:
    """Returns loss_weight / (B * C * cells) of every level and sample, (L, B)."""
    first, batch = student[0], student[0].shape[0]
    dtype = arithmetic_dtype(*student, *teacher)
    expected = (len(student), batch)
    if cells is not None and (tuple(cells.shape) != expected or cells.device != first.device):
        raise ValueError(
            f"{_OP}: cells are {tuple(cells.shape)} on {cells.device}; expected (levels, B) = {expected} on "
            f"{first.device}"
        )
    rows = []
    for l, level in enumerate(student):
        share = loss_weight / max(1, batch * level.shape[1])
        row = first.new_full((batch,), share, dtype=dtype)
        rows.append(row / (max(1, level.shape[2:].numel()) if cells is None else cells[l].clamp(min=1)))
    return torch.stack(rows)
