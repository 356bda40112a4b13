"""Weighted squared distance over a list of levels, in one launch: the op under the masked L2 losses.

    loss[l] = sum over samples b of scale[l, b] * S[l, b]         (its root S^(1/2) with ``norm``)
    S[l, b] = sum over channels c and pixels p of w[b, p] * v[b, c] * (student - teacher)^2

The normaliser is part of ``scale``, so one pass over the features gives the loss and its final gradient: two
reads and one write per entry, where torch's operations take eleven.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import check_levels
from .gradients import gradients_in_forward, refuse_second_derivative, scaled_by_upstream
from .precision import arithmetic_dtype

_OP = "weighted_l2"
Weights = Tensor | Sequence[Tensor | None] | None


def weighted_l2(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    scale: Tensor,
    *,
    weights: Weights = None,
    channel_weights: Sequence[Tensor | None] | None = None,
    norm: bool = False,
) -> Tensor:
    """Computes the weighted squared distance of every level.

    Arithmetic is float32 (float64 where a feature is), whatever autocast does; student and teacher may differ
    in dtype. Contiguous and channels-last maps are read without a copy, others are copied first. The teacher,
    the scale and the weights get no gradient. Entries with weight 0 are ignored, even if NaN, and get
    gradient 0.

    Args:
        student: L levels (B, C, pixels..), all of one dtype; any number of pixel dimensions, and none.
        teacher: L levels of the student's shapes, all of one dtype.
        scale: (L, B), on the features' device.
        weights: of pixels, not negative: L tensors (B, pixels..), None where a level has none; or (B, P), P
            the pixels of all levels, one level after another; any dtype.
        channel_weights: of channels, not negative: L tensors (C,) or (B, C), None where a level has none.
        norm: the root of each sample's sum; its gradient is taken as zero where the sum is zero.

    Returns:
        (L,), float32 (float64 where a feature is).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or weights that require a gradient.
        RuntimeError: CUDA features where the CUDA ops are not built, or a forward-mode derivative.
    """
    given = arguments(student, teacher, scale, weights, channel_weights)
    need_grad = not norm and gradients_in_forward(given.student)
    loss: Tensor = torch.ops.bevkd2.weighted_l2(*given, norm, need_grad)[0]
    return loss


class Arguments(NamedTuple):
    """What the compiled op reads."""

    student: list[Tensor]
    """(B, C, P) of each level."""
    teacher: list[Tensor]
    """Likewise, in the student's layout."""
    pixel_weights: list[Tensor]
    """(B, P) of each level; an absent one is empty."""
    channel_weights: list[Tensor]
    """(B, C), the same."""
    scale: Tensor
    """(L, B)."""


def arguments(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    scale: Tensor,
    weights: Weights,
    channel_weights: Sequence[Tensor | None] | None,
) -> Arguments:
    """Checks the arguments of :func:`weighted_l2`, and lays them out for the compiled op.

    Args:
        student: L levels (B, C, pixels..); a map that is neither contiguous nor channels-last is
            copied.
        teacher: L levels of the student's shapes; detached, and laid out like the student's.
        scale: (L, B); detached, in the arithmetic dtype.
        weights: of pixels: L tensors (B, pixels..) or None; or one (B, P) of all levels.
        channel_weights: L tensors (C,) or (B, C), or None.

    Returns:
        What the compiled op reads.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or weights that require a gradient.
    """
    student, teacher = list(student), list(teacher)
    _check(student, teacher, scale)
    scale = scale.detach().to(arithmetic_dtype(student[0], teacher[0])).contiguous()
    pixel_weights = _pixel_weights(student, weights, scale)
    channels = _channel_weights(student, channel_weights, scale)
    ours = [_dense(level.unsqueeze(2) if level.dim() == 2 else level.flatten(2)) for level in student]
    theirs = [
        _laid_out_like(our, level.detach().reshape(our.shape))
        for our, level in zip(ours, teacher, strict=True)
    ]
    return Arguments(ours, theirs, pixel_weights, channels, scale)


def _check(student: list[Tensor], teacher: list[Tensor], scale: Tensor) -> None:
    check_levels(_OP, student, teacher)
    for l, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        if ours.dim() < 2 or ours.shape != theirs.shape or ours.shape[0] != student[0].shape[0]:
            raise ValueError(
                f"{_OP}: level {l}: student is {tuple(ours.shape)}, teacher {tuple(theirs.shape)}; expected "
                f"the same (B, C, pixels..) with level 0's batch of {student[0].shape[0]}"
            )
        if theirs.dtype != teacher[0].dtype:
            raise ValueError(
                f"{_OP}: level {l} of the teacher is {theirs.dtype}, level 0 {teacher[0].dtype}; expected "
                "one dtype"
            )
    if tuple(scale.shape) != (len(student), student[0].shape[0]) or scale.device != student[0].device:
        raise ValueError(
            f"{_OP}: scale is {tuple(scale.shape)} on {scale.device}; expected (levels, batch) = "
            f"{(len(student), student[0].shape[0])} on {student[0].device}"
        )


def _pixel_weights(student: list[Tensor], weights: Weights, scale: Tensor) -> list[Tensor]:
    """Returns (B, P) of every level in the scale's dtype; an absent one is empty."""
    if weights is None:
        return [scale.new_empty(0)] * len(student)
    pixels = [level.shape[2:].numel() for level in student]
    if isinstance(weights, Tensor):
        expected = (scale.shape[1], sum(pixels))
        if tuple(weights.shape) != expected:
            raise ValueError(
                f"{_OP}: weights are {tuple(weights.shape)}; expected (B, pixels of all levels) = {expected}"
            )
        return list(_plain("weights", weights, scale).split(pixels, 1))
    if len(weights) != len(student):
        raise ValueError(f"{_OP}: {len(weights)} weights for {len(student)} levels; expected one per level")
    found = []
    for l, (level, weight) in enumerate(zip(student, weights, strict=True)):
        expected = (level.shape[0], *level.shape[2:])
        if weight is not None and tuple(weight.shape) != expected:
            raise ValueError(
                f"{_OP}: weights of level {l} are {tuple(weight.shape)}; expected (B, pixels..) = {expected}"
            )
        found.append(
            scale.new_empty(0)
            if weight is None
            else _plain("weights", weight, scale).reshape(level.shape[0], pixels[l])
        )
    return found


def _channel_weights(
    student: list[Tensor], weights: Sequence[Tensor | None] | None, scale: Tensor
) -> list[Tensor]:
    """Returns (B, C) of every level in the scale's dtype; an absent one is empty."""
    if weights is None:
        return [scale.new_empty(0)] * len(student)
    if len(weights) != len(student):
        raise ValueError(
            f"{_OP}: {len(weights)} channel_weights for {len(student)} levels; expected one per level"
        )
    found = []
    for l, (level, weight) in enumerate(zip(student, weights, strict=True)):
        expected = tuple(level.shape[:2])
        if weight is not None and tuple(weight.shape) not in (expected, expected[1:]):
            raise ValueError(
                f"{_OP}: channel_weights of level {l} are {tuple(weight.shape)}; expected (C,) = "
                f"{expected[1:]} or (B, C) = {expected}"
            )
        found.append(
            scale.new_empty(0)
            if weight is None
            else _plain("channel_weights", weight, scale).expand(expected).contiguous()
        )
    return found


def _plain(name: str, weights: Tensor, scale: Tensor) -> Tensor:
    """Returns weights as the kernel reads them: constants in the arithmetic dtype."""
    if weights.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{_OP}: {name} require a gradient, and this loss gives them none; detach them")
    if weights.device != scale.device:
        raise ValueError(
            f"{_OP}: {name} are on {weights.device}, the features on {scale.device}; move one to the other"
        )
    return weights.detach().to(scale.dtype).contiguous()


def _dense(level: Tensor) -> Tensor:
    """Returns (B, C, P) whose pixels, or whose channels, are adjacent in memory."""
    return level if level.is_contiguous() or level.transpose(1, 2).is_contiguous() else level.contiguous()


def _laid_out_like(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the teacher's level in the layout of the student's."""
    if student.is_contiguous():
        return teacher.contiguous()
    return teacher.transpose(1, 2).contiguous().transpose(1, 2)


@torch.library.register_fake("bevkd2::weighted_l2")
def _fake(
    student: list[Tensor],
    teacher: list[Tensor],
    pixel_weights: list[Tensor],
    channel_weights: list[Tensor],
    scale: Tensor,
    norm: bool,
    need_grad: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    grads = [torch.empty_like(level) for level in student] if need_grad else []
    return scale.new_empty(scale.shape[0]), scale.new_empty(scale.shape), grads


@torch.library.register_fake("bevkd2::weighted_l2_backward")
def _fake_backward(
    student: list[Tensor],
    teacher: list[Tensor],
    pixel_weights: list[Tensor],
    channel_weights: list[Tensor],
    factor: Tensor,
) -> list[Tensor]:
    return [torch.empty_like(level) for level in student]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, list[Tensor]]) -> None:
    student, teacher, pixel_weights, channel_weights, scale, ctx.norm, ctx.made = inputs
    _, sums, grads = output
    ctx.mark_non_differentiable(sums, *grads)
    ctx.set_materialize_grads(False)  # otherwise backward gets a tensor of zeros for each of them
    ctx.levels = len(student)
    if ctx.made:
        ctx.save_for_backward(*grads)
    else:
        ctx.save_for_backward(*student, *teacher, *pixel_weights, *channel_weights, scale, sums)


def _backward(ctx: Any, upstream: Tensor | None, *unused: object) -> tuple[Any, ...]:
    refuse_second_derivative(_OP)
    none = [None] * ctx.levels  # for each list of tensors
    if upstream is None:
        return none, none, none, none, None, None, None
    if ctx.made:
        return scaled_by_upstream(ctx.saved_tensors, upstream), none, none, none, None, None, None
    *tensors, scale, sums = ctx.saved_tensors
    student, teacher, pixels, channels = (
        list(tensors[i * ctx.levels : (i + 1) * ctx.levels]) for i in range(4)
    )
    factor = scale * upstream[:, None]
    if ctx.norm:  # the gradient of sqrt(S) is that of S / (2 sqrt(S))
        factor = torch.where(sums > 0, factor / (2 * sums.where(sums > 0, 1).sqrt()), 0)
    grads = torch.ops.bevkd2.weighted_l2_backward(student, teacher, pixels, channels, factor)
    return grads, none, none, none, None, None, None


torch.library.register_autograd("bevkd2::weighted_l2", _backward, setup_context=_setup_context)
