"""The distillation losses over features, attention weights, class predictions and softmaxes in plain PyTorch.

They compute in float32 (float64 for float64 inputs), as the ops do.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bevkd2.ops.l2_reductions import Reduction, check_cells
from bevkd2.ops.precision import widen
from bevkd2.ops.prediction_distill import Distance, class_distance
from bevkd2.ops.prediction_loss import PredictionLoss
from bevkd2.ops.weighted_l2 import Weights

Features = Tensor | Sequence[Tensor]


def masked_l2_reference(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, reduction: Reduction
) -> Tensor:
    """Computes ``masked_l2`` and ``attention_l2`` of one tensor, as bevkd2/ops/l2_reductions.py defines them.

    Args:
        student: (B, cells.., entries..).
        teacher: the same shape.
        mask: (B, cells..) bool or non-negative weights; ``None`` counts every cell of (B, N).
        reduction: ``"sum"``, ``"cell"``, ``"mean"`` or ``"norm"``.

    Returns:
        A scalar.
    """
    check_cells("masked_l2", student, teacher, mask, reduction)
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
        return _root(squares.flatten(1).sum(1)).sum() / max(1, student.shape[0])
    total = squares.sum()
    if reduction == "sum":
        return total / max(1, student.shape[0])
    entries = student.shape[cells:].numel() if reduction == "mean" else 1
    return total / (counted.where(counted > 0, 1) * max(1, entries))


def weighted_l2_reference(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    scale: Tensor,
    *,
    weights: Weights = None,
    channel_weights: Sequence[Tensor | None] | None = None,
    norm: bool = False,
) -> Tensor:
    """Computes ``weighted_l2``; the arguments are its own."""
    if isinstance(weights, Tensor):
        weights = weights.split([level.shape[2:].numel() for level in student], 1)
    losses = []
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        pixels = None if weights is None else weights[i]
        channels = None if channel_weights is None else channel_weights[i]
        difference = (widen(s) - widen(t.detach())).reshape(*s.shape[:2], s.shape[2:].numel())  # (B, C, P)
        weight = torch.ones_like(difference)
        if pixels is not None:
            weight = weight * pixels.reshape(s.shape[0], 1, s.shape[2:].numel())
        if channels is not None:
            weight = weight * channels.expand(s.shape[:2])[:, :, None]
        sums = (weight * difference.masked_fill(weight == 0, 0).square()).sum((1, 2))
        if norm:
            sums = torch.where(sums > 0, sums.where(sums > 0, 1).sqrt(), sums * 0)
        losses.append((scale[i] * sums).sum())
    return torch.stack(losses)


def bev_response_l2_reference(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, reduction: Reduction
) -> Tensor:
    """Computes ``bev_response_l2`` of embeddings (B, N, C): L2 between mean absolute features."""
    ours, theirs = (widen(embedding).abs().mean(-1) for embedding in (student, teacher))
    return masked_l2_reference(ours, theirs, mask, reduction=reduction)


def feature_l2_reference(
    student: Tensor, teacher: Tensor, weights: Tensor | None = None, cells: Tensor | None = None
) -> Tensor:
    """Computes ``feature_l2`` of one level.

    Args:
        student: (B, C, H, W).
        teacher: the same shape.
        weights: (B, H, W), not negative; ``None`` is 1 everywhere.
        cells: (B,) number of cells to divide by; ``None`` is H * W.

    Returns:
        A scalar.
    """
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


def prediction_loss_reference(
    student: Tensor,
    teacher: Tensor,
    objects: Tensor,
    guidance: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    distance: Distance,
    temperature: float = 1.0,
    object_weight: float = 1.0,
    background_weight: float = 1.0,
) -> PredictionLoss:
    """Computes ``prediction_loss``; the arguments are its own."""
    each = class_distance(student, teacher, distance, temperature)
    counted = torch.ones_like(each) if weights is None else weights.to(each)
    guided = each if guidance is None else each * guidance
    terms = []
    for group, values, factor in (
        (objects, guided, object_weight),
        (~objects, each, background_weight),
    ):
        weight = counted.masked_fill(~group, 0)
        total = weight.sum()
        summed = (values * weight).masked_fill(weight == 0, 0).sum()
        terms.append(factor * summed / total.where(total > 0, 1))
    return PredictionLoss(*terms)


def normalized_l2_reference(student: Features, teacher: Features, *, epsilon: float = 1e-6) -> Tensor:
    """Computes ``normalized_l2`` as the code of PKD does.

    Args:
        student: (B, C, H, W), or a list of L levels.
        teacher: the same shapes.
        epsilon: added to the standard deviations.

    Returns:
        (L,); one tensor is one level.
    """

    def normalize(features: Tensor) -> Tensor:
        rows = widen(features).transpose(0, 1).flatten(1)  # (C, B * H * W)
        return (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + epsilon)

    levels = _levels(student, teacher, None)
    return torch.stack([F.mse_loss(normalize(s), normalize(t.detach())) / 2 for s, t, _ in levels])


def absolute_means_reference(features: Tensor, *, power: int = 1) -> tuple[Tensor, Tensor]:
    """Computes ``absolute_means``.

    Args:
        features: (B, C, pixels..).
        power: 1 or 2.

    Returns:
        Means over the channels (B, pixels..) and over the pixels (B, C).
    """
    values = widen(features).abs() ** power
    return values.mean(1), values.flatten(2).mean(2)


def channel_wise_kl_reference(
    student: Features, teacher: Features, weights: Features | None = None, *, temperature: float = 1.0
) -> Tensor:
    """Computes ``channel_wise_kl``: softmaxes over the positions of a channel.

    Args:
        student: (B, C, H, W), or a list of L levels.
        teacher: the same shapes.
        weights: (C,) or (B, C) per level.
        temperature: T, by which both features are divided.

    Returns:
        (L,); one tensor is one level.
    """
    levels = [
        _weighted_kl(
            s.flatten(2), t.flatten(2), None if w is None else w.expand(s.shape[:2]), temperature=temperature
        )
        for s, t, w in _levels(student, teacher, weights)
    ]
    return torch.stack(levels)


def pixel_wise_kl_reference(
    student: Features, teacher: Features, weights: Features | None = None, *, temperature: float = 1.0
) -> Tensor:
    """Computes ``pixel_wise_kl``: softmaxes over the channels at a position.

    Args:
        student: (B, C, H, W), or a list of L levels.
        teacher: the same shapes.
        weights: (B, H, W) per level.
        temperature: T, by which both features are divided.

    Returns:
        (L,); one tensor is one level.
    """
    levels = [
        _weighted_kl(
            s.flatten(2).transpose(1, 2),
            t.flatten(2).transpose(1, 2),
            None if w is None else w.flatten(1),
            temperature=temperature,
        )
        for s, t, w in _levels(student, teacher, weights)
    ]
    return torch.stack(levels)


def _levels(
    student: Features, teacher: Features, weights: Features | None
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Returns student, teacher and weights of each level."""
    if isinstance(student, Tensor):
        assert isinstance(teacher, Tensor)
        assert weights is None or isinstance(weights, Tensor)
        return [(student, teacher, weights)]
    return list(zip(student, teacher, [None] * len(student) if weights is None else weights, strict=True))


def _weighted_kl(student: Tensor, teacher: Tensor, weights: Tensor | None, *, temperature: float) -> Tensor:
    """Returns the weighted mean of T^2 KL(teacher || student) over rows.

    Args:
        student: (B, R, entries) logits.
        teacher: the same shape.
        weights: (B, R), or ``None`` for 1 everywhere.
        temperature: T.
    """
    ours = (widen(student) / temperature).log_softmax(-1)
    theirs = (widen(teacher.detach()) / temperature).log_softmax(-1)
    divergence = temperature**2 * (theirs.exp() * (theirs - ours)).sum(-1)
    weight = torch.ones_like(divergence) if weights is None else weights.to(divergence)
    total = weight.sum()
    counted = (divergence * weight).masked_fill(weight == 0, 0)
    return counted.sum() / total.where(total > 0, 1)


def _root(squares: Tensor) -> Tensor:
    """Returns the square root, with gradient zero at zero."""
    positive = squares > 0
    return torch.where(positive, squares.where(positive, 1).sqrt(), squares * 0)
