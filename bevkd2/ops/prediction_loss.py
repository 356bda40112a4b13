"""Distances of class predictions over all locations of a batch, compiled: losses and gradients in one pass.

``class_distance`` (prediction_distill.py) defines the distances. Arithmetic is float32 (float64 where an
input is), whatever autocast does; student and teacher may differ in dtype. The teacher and the weights get no
gradient; the guidance gets one.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from .arguments import check_pair, check_shape, refuse_forward_mode
from .gradients import gradients_in_forward, graph_is_kept, refuse_second_derivative
from .precision import arithmetic_dtype
from .prediction_distill import Distance

_DISTANCES = {"l2": 0, "l2_logits": 1, "kl": 2, "softmax_kl": 3}


class PredictionLoss(NamedTuple):
    """The two terms of the prediction loss, scalars; their sum is Eq. 6."""

    objects: Tensor
    background: Tensor


def logit_distance(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor | None = None,
    *,
    distance: Distance,
    temperature: float = 1.0,
    loss_weight: float = 1.0,
) -> Tensor:
    """Computes the weighted mean over locations of a distance of class logits, summed over the classes.

    Args:
        student: (B, Q, K) logits of K classes at Q locations.
        teacher: the same shape.
        weights: (B, Q) bool, or non-negative weights; ``None`` counts every location once. Locations with
            weight 0 are ignored, even if NaN.
        distance: ``"l2"``, ``"l2_logits"``, ``"kl"`` or ``"softmax_kl"``; see
            :func:`bevkd2.ops.class_distance`.
        temperature: T of the two KLs.
        loss_weight: a factor.

    Returns:
        loss_weight * sum of w * distance / sum of w, a scalar; float32 (float64 where an input is).

    Raises:
        ValueError: shapes that do not fit, an unknown distance, a temperature that is not positive.
    """
    _check("logit_distance", student, teacher, distance, temperature, weights=weights)
    losses = _losses(student, teacher, weights, None, None, distance, temperature, (0.0, loss_weight))
    return losses[1]


def prediction_loss(
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
    """Computes prediction distillation separately for objects and background (Eq. 6).

    With l the distance at a location, w its weight and D its guidance, the losses are::

        objects      object_weight * sum over objects' locations of D * w * l / sum of their w
        background   background_weight * sum over the other locations of w * l / sum of their w

    A group whose weights sum to zero gives zero.

    Args:
        student: (B, Q, K) logits of K classes at Q locations.
        teacher: the same shape.
        objects: (B, Q) bool, the objects' locations.
        guidance: (B, Q), D; :func:`bevkd2.ops.depth_guidance` computes the paper's (Eq. 5). It gets a
            gradient unless it is detached. Only objects' locations with a weight are read. ``None``: 1.
        weights: (B, Q) bool, or non-negative weights; ``None`` counts every location once. Locations with
            weight 0 are ignored, even if NaN.
        distance: ``"l2"``, ``"l2_logits"``, ``"kl"`` or ``"softmax_kl"``; see
            :func:`bevkd2.ops.class_distance`.
        temperature: T of the two KLs.
        object_weight: alpha of the objects.
        background_weight: alpha of the background.

    Returns:
        Both losses, float32 (float64 where an input is).

    Raises:
        ValueError: shapes that do not fit, an unknown distance, a temperature that is not positive.
    """
    name = "prediction_loss"
    _check(name, student, teacher, distance, temperature, objects=objects, guidance=guidance, weights=weights)
    if objects.dtype != torch.bool:
        raise ValueError(f"{name}: objects are {objects.dtype}; expected bool")
    if guidance is not None:
        refuse_forward_mode(name, guidance)
    factors = (object_weight, background_weight)
    losses = _losses(student, teacher, weights, objects, guidance, distance, temperature, factors)
    return PredictionLoss(*losses.unbind(0))


def _check(
    op: str,
    student: Tensor,
    teacher: Tensor,
    distance: str,
    temperature: float,
    **per_location: Tensor | None,
) -> None:
    """Checks what the distances of class predictions need.

    Args:
        op: the function that the user called.
        student: (B, Q, K) logits.
        teacher: (B, Q, K) logits.
        distance: a name of a distance.
        temperature: of the KLs.
        per_location: (B, Q) tensors by their names; ``None`` is ignored.

    Raises:
        ValueError: one of them does not fit.
    """
    if distance not in _DISTANCES:
        raise ValueError(f"{op}: distance is {distance!r}; expected one of {get_args(Distance)}")
    if not temperature > 0:
        raise ValueError(f"{op}: temperature is {temperature}; expected a positive number")
    if student.dim() != 3 or student.shape != teacher.shape:
        raise ValueError(
            f"{op}: student is {tuple(student.shape)}, teacher {tuple(teacher.shape)}; expected the same "
            "(B, Q, K)"
        )
    for key, tensor in per_location.items():
        if tensor is not None:
            check_shape(op, key, tensor, student.shape[:2], "(B, Q)")
    check_pair(op, student, teacher, **per_location)


def _losses(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor | None,
    objects: Tensor | None,
    guidance: Tensor | None,
    distance: str,
    temperature: float,
    factors: tuple[float, float],
) -> Tensor:
    """Returns (2,): the losses of objects and of the background."""
    dtype = arithmetic_dtype(student, teacher, guidance)
    made_now = gradients_in_forward([student])
    losses: Tensor
    losses, _, _ = torch.ops.bevkd2.prediction_loss(
        student,
        teacher.detach(),
        None if weights is None else weights.detach().to(dtype).contiguous(),
        None if objects is None else objects.contiguous(),
        None if guidance is None else guidance.to(dtype).contiguous(),
        _DISTANCES[distance],
        temperature,
        *factors,
        made_now,
        made_now and guidance is not None and guidance.requires_grad,
    )
    return losses


def _gradients_like(
    student: Tensor, teacher: Tensor, guidance: Tensor | None, need_logits: bool, need_guidance: bool
) -> tuple[Tensor, Tensor]:
    has_guidance = need_guidance and guidance is not None
    return (
        student.new_empty(student.shape if need_logits else (0,)),
        student.new_empty(
            student.shape[:2] if has_guidance else (0,), dtype=arithmetic_dtype(student, teacher, guidance)
        ),
    )


@torch.library.register_fake("bevkd2::prediction_loss")
def _fake(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor | None,
    objects: Tensor | None,
    guidance: Tensor | None,
    distance: int,
    temperature: float,
    object_weight: float,
    background_weight: float,
    need_logits: bool,
    need_guidance: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    losses = student.new_empty((2,), dtype=arithmetic_dtype(student, teacher, guidance))
    return (losses, *_gradients_like(student, teacher, guidance, need_logits, need_guidance))


@torch.library.register_fake("bevkd2::prediction_loss_backward")
def _fake_backward(
    grad_losses: Tensor,
    student: Tensor,
    teacher: Tensor,
    weights: Tensor | None,
    objects: Tensor | None,
    guidance: Tensor | None,
    distance: int,
    temperature: float,
    object_weight: float,
    background_weight: float,
    need_logits: bool,
    need_guidance: bool,
) -> tuple[Tensor, Tensor]:
    return _gradients_like(student, teacher, guidance, need_logits, need_guidance)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, weights, objects, guidance, *numbers, need_logits, _ = inputs
    _, grad_logits, grad_guidance = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(grad_logits, grad_guidance)
    ctx.made_in_forward = need_logits
    if need_logits:
        ctx.save_for_backward(objects, grad_logits, grad_guidance)
    else:
        ctx.numbers = numbers  # distance, temperature, object_weight, background_weight
        ctx.save_for_backward(student, teacher, weights, objects, guidance)


def _backward(ctx: Any, grad_losses: Tensor | None, *unused: object) -> tuple[Tensor | None, ...]:
    refuse_second_derivative("prediction_loss")
    need_logits, _, _, _, need_guidance, *_ = ctx.needs_input_grad
    grad_logits = grad_guidance = None
    if grad_losses is not None and ctx.made_in_forward:
        objects, saved_logits, saved_guidance = ctx.saved_tensors
        grad_logits, grad_guidance = _scaled_by_upstream(objects, saved_logits, saved_guidance, grad_losses)
    elif grad_losses is not None:
        grad_logits, grad_guidance = torch.ops.bevkd2.prediction_loss_backward(
            grad_losses, *ctx.saved_tensors, *ctx.numbers, need_logits, need_guidance
        )
    student = grad_logits if need_logits else None
    guidance = grad_guidance if need_guidance else None
    distance_to_background_weight = (None, None, None, None)
    needs = (None, None)
    return student, None, None, None, guidance, *distance_to_background_weight, *needs


def _scaled_by_upstream(
    objects: Tensor | None, logits: Tensor, guidance: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the saved gradients times the two groups' upstream gradients.

    As in :func:`bevkd2.ops.gradients.scaled_by_upstream`, factors of exactly 1 cost nothing on the CPU.
    """
    if not graph_is_kept(upstream) and upstream.device.type == "cpu" and bool((upstream == 1).all()):
        return logits, guidance
    factor = upstream[1] if objects is None else torch.where(objects, upstream[0], upstream[1])[..., None]
    return (logits * factor).to(logits.dtype), guidance * upstream[0]


torch.library.register_autograd("bevkd2::prediction_loss", _backward, setup_context=_setup_context)
