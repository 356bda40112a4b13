"""Distances of class predictions over all locations of a batch, compiled: losses and gradients in one pass.

class_distance and depth_guidance (prediction_distill.py) define the maths, and are what tests hold the op to.
Arithmetic is float32 (float64 where an input is), whatever autocast does; student and teacher may differ in
dtype. The teacher, the weights and the true depths get no gradient.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from .arguments import check_pair, check_shape, refuse_forward_mode
from .gradients import gradients_in_forward, graph_is_kept, refuse_second_derivative
from .prediction_distill import Distance, Rho, class_distance, depth_guidance

_DISTANCES = {"l2": 0, "l2_logits": 1, "kl": 2, "softmax_kl": 3}
_RHOS = {"off": 0, "exp": 1, "linear": 2}


class PredictionLoss(NamedTuple):
    """The two terms of the prediction loss, scalars; their sum is Eq. 6."""

    objects: Tensor
    background: Tensor


@dataclasses.dataclass(frozen=True)
class DepthWeights:
    """What the depth-guided weight of objects' locations is made of (depth-guided distillation, Eq. 5).

    Attributes:
        true_depth: (B, Q) metres.
        max_depth: scalar tensor, the largest annotated depth of the mini-batch in metres.
        student_depth: (B, Q) metres; it gets a gradient unless it is detached. None leaves phi out.
        teacher_depth: likewise.
        frozen: (B,) bool, samples whose two depths count as equal; None: none.
        slope, offset: of phi; 10 and 1 in the paper.
        rho: "exp" (the paper's choice), "linear" or "off".
    """

    true_depth: Tensor
    max_depth: Tensor
    student_depth: Tensor | None = None
    teacher_depth: Tensor | None = None
    frozen: Tensor | None = None
    slope: float = 10.0
    offset: float = 1.0
    rho: Rho = "exp"


def logit_distance(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor | None = None,
    *,
    distance: Distance,
    temperature: float = 1.0,
    loss_weight: float = 1.0,
) -> Tensor:
    """The weighted mean over locations of a distance between class logits, summed over the classes.

    Args:
        student: (B, Q, K) logits of K classes at Q locations.
        teacher: the same shape.
        weights: (B, Q) bool, or weights that are not negative; None counts every location once. A location of
            weight zero may hold anything, NaN included.
        distance: "l2", "l2_logits", "kl" or "softmax_kl"; see :func:`bevkd2.ops.class_distance`.
        temperature: T of the two KLs.
        loss_weight: a factor.

    Returns:
        loss_weight * sum of w * distance / sum of w, a scalar; float32 (float64 where an input is).

    Raises:
        ValueError: shapes that do not fit, another distance, a temperature that is not positive.
    """
    return _loss("logit_distance", student, teacher, weights, None, None, distance, temperature,
                 (0.0, loss_weight))[1]  # fmt: skip


def prediction_loss(
    student: Tensor,
    teacher: Tensor,
    objects: Tensor,
    depths: DepthWeights | None = None,
    weights: Tensor | None = None,
    *,
    distance: Distance,
    temperature: float = 1.0,
    object_weight: float = 1.0,
    background_weight: float = 1.0,
) -> PredictionLoss:
    """Depth-guided prediction distillation, objects and background apart (Eq. 6).

    With l the distance at a location, w its weight and D the depth-guided weight::

      objects      object_weight * sum over objects' locations of D * w * l / sum of their w
      background   background_weight * sum over the others of w * l / sum of their w
    A group whose weights sum to zero gives zero.

    Args:
        student: (B, Q, K) logits of K classes at Q locations.
        teacher: the same shape.
        objects: (B, Q) bool, the objects' locations.
        depths: what D is made of; None: D is 1. Read at objects' locations alone.
        weights: (B, Q) bool, or weights that are not negative; None counts every location once. A location of
            weight zero may hold anything, NaN included.
        distance: "l2", "l2_logits", "kl" or "softmax_kl"; see :func:`bevkd2.ops.class_distance`.
        temperature: T of the two KLs.
        object_weight, background_weight: alpha of the two groups.

    Returns:
        Both losses, float32 (float64 where an input is).

    Raises:
        ValueError: shapes that do not fit, another distance or rho, a temperature that is not positive.
    """
    losses = _loss("prediction_loss", student, teacher, weights, objects, depths, distance, temperature,
                   (object_weight, background_weight))  # fmt: skip
    return PredictionLoss(*losses.unbind(0))


def prediction_loss_reference(
    student: Tensor,
    teacher: Tensor,
    objects: Tensor,
    depths: DepthWeights | None = None,
    weights: Tensor | None = None,
    *,
    distance: Distance,
    temperature: float = 1.0,
    object_weight: float = 1.0,
    background_weight: float = 1.0,
) -> PredictionLoss:
    """The same in plain torch: what the tests hold the op to."""
    each = class_distance(student, teacher, distance, temperature)
    counted = torch.ones_like(each) if weights is None else weights.to(each)
    guided = each
    if depths is not None:
        ours = depths.student_depth
        if ours is not None and depths.frozen is not None:
            assert depths.teacher_depth is not None
            ours = torch.where(depths.frozen[:, None], depths.teacher_depth, ours)
        guided = each * depth_guidance(
            ours,
            depths.teacher_depth,
            depths.true_depth,
            depths.max_depth,
            slope=depths.slope,
            offset=depths.offset,
            rho=depths.rho,
        )
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


def _loss(
    name: str,
    student: Tensor,
    teacher: Tensor,
    weights: Tensor | None,
    objects: Tensor | None,
    depths: DepthWeights | None,
    distance: str,
    temperature: float,
    factors: tuple[float, float],
) -> Tensor:
    _check(name, student, teacher, weights, objects, depths, distance, temperature)
    inputs = [student, teacher, depths.student_depth if depths is not None else None]
    wide = torch.float64 if any(t is not None and t.dtype == torch.float64 for t in inputs) else torch.float32

    def constant(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().to(wide).contiguous()

    student_depth = teacher_depth = true_depth = max_depth = frozen = None
    slope, offset, rho = 1.0, 0.0, "off"
    if depths is not None:
        slope, offset, rho = depths.slope, depths.offset, depths.rho
        true_depth, max_depth = constant(depths.true_depth), constant(depths.max_depth)
        if depths.student_depth is not None:
            student_depth = depths.student_depth.to(wide).contiguous()
            teacher_depth = constant(depths.teacher_depth)
            frozen = None if depths.frozen is None else depths.frozen.contiguous()
    made_now = gradients_in_forward([student])
    losses, _, _ = torch.ops.bevkd2.prediction_loss(
        student,
        teacher.detach(),
        constant(weights),
        None if objects is None else objects.contiguous(),
        student_depth,
        teacher_depth,
        true_depth,
        max_depth,
        frozen,
        _DISTANCES[distance],
        _RHOS[rho],
        temperature,
        slope,
        offset,
        *factors,
        made_now,
        made_now and student_depth is not None and student_depth.requires_grad,
    )
    return losses


def _check(
    name: str,
    student: Tensor,
    teacher: Tensor,
    weights: Tensor | None,
    objects: Tensor | None,
    depths: DepthWeights | None,
    distance: str,
    temperature: float,
) -> None:
    if distance not in _DISTANCES:
        raise ValueError(f"{name}: distance is {distance!r}; expected one of {get_args(Distance)}")
    if not temperature > 0:
        raise ValueError(f"{name}: temperature is {temperature}; expected a positive number")
    if student.dim() != 3 or student.shape != teacher.shape:
        raise ValueError(
            f"{name}: student is {tuple(student.shape)}, teacher {tuple(teacher.shape)}; expected the same "
            "(B, Q, K)"
        )
    per_location = {"weights": weights, "objects": objects}
    placed: dict[str, Tensor | None] = {}
    if depths is not None:
        if depths.rho not in _RHOS:
            raise ValueError(f"{name}: rho is {depths.rho!r}; expected one of {get_args(Rho)}")
        if (depths.student_depth is None) != (depths.teacher_depth is None):
            raise ValueError(f"{name}: one depth of student and teacher is None; give both or neither")
        per_location |= {
            "true_depth": depths.true_depth,
            "student_depth": depths.student_depth,
            "teacher_depth": depths.teacher_depth,
        }
        placed |= {"max_depth": depths.max_depth, "frozen": depths.frozen}
        check_shape(name, "max_depth", depths.max_depth, (), "a scalar")
        if depths.frozen is not None:
            check_shape(name, "frozen", depths.frozen, student.shape[:1], "(B,)")
        if depths.student_depth is not None:
            refuse_forward_mode(name, depths.student_depth)
    for key, tensor in per_location.items():
        if tensor is not None:
            check_shape(name, key, tensor, student.shape[:2], "(B, Q)")
    check_pair(name, student, teacher, **per_location, **placed)
    if objects is not None and objects.dtype != torch.bool:
        raise ValueError(f"{name}: objects are {objects.dtype}; expected bool")


def _wide(student: Tensor, teacher: Tensor, student_depth: Tensor | None) -> torch.dtype:
    dtypes = (student.dtype, teacher.dtype, None if student_depth is None else student_depth.dtype)
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _gradients_like(
    student: Tensor, teacher: Tensor, student_depth: Tensor | None, need_logits: bool, need_depth: bool
) -> tuple[Tensor, Tensor]:
    has_depth = need_depth and student_depth is not None
    return (
        student.new_empty(student.shape if need_logits else (0,)),
        student.new_empty(
            student.shape[:2] if has_depth else (0,), dtype=_wide(student, teacher, student_depth)
        ),
    )


@torch.library.register_fake("bevkd2::prediction_loss")
def _fake(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor | None,
    objects: Tensor | None,
    student_depth: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    losses = student.new_empty((2,), dtype=_wide(student, teacher, student_depth))
    return (losses, *_gradients_like(student, teacher, student_depth, *rest[-2:]))


@torch.library.register_fake("bevkd2::prediction_loss_backward")
def _fake_backward(
    grad_losses: Tensor,
    student: Tensor,
    teacher: Tensor,
    weights: Tensor | None,
    objects: Tensor | None,
    student_depth: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    return _gradients_like(student, teacher, student_depth, *rest[-2:])


_TENSORS = 9  # arguments before the numbers
_OBJECTS, _STUDENT_DEPTH = 3, 4


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.numbers, (ctx.saved_logits, ctx.saved_depth) = inputs[_TENSORS:-2], inputs[-2:]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    if ctx.saved_logits:
        ctx.save_for_backward(inputs[_OBJECTS], *output[1:])
    else:
        ctx.save_for_backward(*inputs[:_TENSORS])


def _backward(ctx: Any, grad_losses: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    refuse_second_derivative("prediction_loss")
    grads: list[Tensor | None] = [None] * (_TENSORS + len(ctx.numbers) + 2)
    need_logits, need_depth = ctx.needs_input_grad[0], ctx.needs_input_grad[_STUDENT_DEPTH]
    if grad_losses is None:
        return tuple(grads)
    if ctx.saved_logits:
        objects, logits, depth = ctx.saved_tensors
        scaled = _scaled(logits, depth, objects, grad_losses)
    else:
        scaled = torch.ops.bevkd2.prediction_loss_backward(
            grad_losses, *ctx.saved_tensors, *ctx.numbers, need_logits, need_depth
        )
    grads[0] = scaled[0] if need_logits else None
    grads[_STUDENT_DEPTH] = scaled[1] if need_depth else None
    return tuple(grads)


def _scaled(logits: Tensor, depth: Tensor, objects: Tensor | None, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Saved gradients times the upstream gradients of the two groups; see scaled_by_upstream."""
    if not graph_is_kept(upstream) and upstream.device.type == "cpu" and bool((upstream == 1).all()):
        return logits, depth
    factor = upstream[1] if objects is None else torch.where(objects, upstream[0], upstream[1])[..., None]
    return (logits * factor).to(logits.dtype), depth * upstream[0]


torch.library.register_autograd("bevkd2::prediction_loss", _backward, setup_context=_setup_context)
