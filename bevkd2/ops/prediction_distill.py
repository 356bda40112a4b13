"""Distances of class predictions and the depth-guided weight in plain PyTorch.

They are Eq. 5 and 6 of depth-guided distillation.
Arithmetic is in float32 (float64 where an input is), whatever autocast does; the teacher gets no gradient.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import check_shape
from .precision import widen

Distance = Literal["l2", "l2_logits", "kl", "softmax_kl"]
Rho = Literal["exp", "linear", "off"]


def class_distance(student: Tensor, teacher: Tensor, distance: Distance, temperature: float = 1.0) -> Tensor:
    """Computes the distance of class predictions at every location, summed over the classes.

    ``"l2"``: squared difference of probabilities sigmoid(z). ``"l2_logits"``: of logits. ``"kl"``: for every
    class the KL divergence of Bernoulli(sigmoid(student / T)) from Bernoulli(sigmoid(teacher / T)), times T^2
    (the detectors classify by independent sigmoids). ``"softmax_kl"``: the KL divergence of
    softmax(student / T) from softmax(teacher / T), times T^2, for heads that choose one class.

    Args:
        student: (..., K) logits.
        teacher: the same shape.
        distance: see above.
        temperature: T of the two KLs.

    Returns:
        (...), float32 (float64 where an input is).

    Raises:
        ValueError: shapes that differ, an unknown distance, a temperature that is not positive.
    """
    if distance not in get_args(Distance):
        raise ValueError(f"class_distance: distance is {distance!r}; expected one of {get_args(Distance)}")
    if student.shape != teacher.shape:
        raise ValueError(
            f"class_distance: student is {tuple(student.shape)}, teacher {tuple(teacher.shape)}; they must "
            "have the same shape"
        )
    if not temperature > 0:
        raise ValueError(f"class_distance: temperature is {temperature}; expected a positive number")
    student, teacher = widen(student), widen(teacher.detach())
    if distance == "l2_logits":
        return (student - teacher).square().sum(-1)
    if distance == "l2":
        return (student.sigmoid() - teacher.sigmoid()).square().sum(-1)
    student, teacher = student / temperature, teacher / temperature
    if distance == "softmax_kl":
        ours, theirs = student.log_softmax(-1), teacher.log_softmax(-1)
        return temperature**2 * (theirs.exp() * (theirs - ours)).sum(-1)
    probability = teacher.sigmoid()
    divergence = probability * (F.logsigmoid(teacher) - F.logsigmoid(student)) + (1 - probability) * (
        F.logsigmoid(-teacher) - F.logsigmoid(-student)
    )
    return temperature**2 * divergence.sum(-1)


def depth_guidance(
    student_depth: Tensor | None,
    teacher_depth: Tensor | None,
    true_depth: Tensor,
    max_depth: Tensor,
    *,
    counted: Tensor | None = None,
    frozen: Tensor | None = None,
    slope: float = 10.0,
    offset: float = 1.0,
    rho: Rho = "exp",
) -> Tensor:
    """Computes the depth-guided weight D of every location.

    ``D = phi(|tau(d_s) - tau(d_t)|) * rho(tau(d_gt))`` is Eq. 5: tau(d) = d / max_depth, of depths limited
    to 0..max_depth; phi(x) = slope * x + offset; rho(x) is exp(x), x + 1, or 1.

    Args:
        student_depth: (B, Q) or another shape, metres; it gets a gradient unless it is detached. ``None``
            leaves phi out.
        teacher_depth: the same shape, metres; ``None`` exactly where ``student_depth`` is.
        true_depth: the same shape, metres.
        max_depth: scalar tensor, the largest annotated depth of the mini-batch in metres.
        counted: the same shape, bool: the locations whose weight is used. At the others the weight is 1, and
            depths are ignored, even if NaN. ``None``: all.
        frozen: (B,) bool, samples whose two depths count as equal, so that phi is its offset; ``None``: none.
        slope: of phi; 10 in the paper.
        offset: of phi; 1 in the paper.
        rho: ``"exp"`` (the paper's choice), ``"linear"`` or ``"off"``.

    Returns:
        The shape of ``true_depth``, float32 (float64 where a depth that is read is; with rho ``"off"`` and
        two depths, ``true_depth`` is not).

    Raises:
        ValueError: an unknown rho, shapes or devices that do not fit, or only one of the two depths.
    """
    _check_depths(student_depth, teacher_depth, true_depth, max_depth, counted, frozen)
    if rho not in get_args(Rho):
        raise ValueError(f"depth_guidance: rho is {rho!r}; expected one of {get_args(Rho)}")
    gather = counted is not None and counted.device.type == "cpu" and not torch.compiler.is_compiling()
    weight: Tensor = _Guidance.apply(
        student_depth,
        None if teacher_depth is None else teacher_depth.detach(),
        true_depth.detach(),
        max_depth.detach(),
        counted,
        frozen,
        gather,
        slope,
        offset,
        rho,
    )
    return weight


class _Guidance(torch.autograd.Function):
    """:func:`depth_guidance` with the student's gradient written by hand: few operations, few saved tensors.

    Few locations are counted. On the CPU only they are gathered and computed; on CUDA gathering them would
    wait for the device, and compiled code would need dynamic shapes, so all locations are computed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor | None,
        teacher: Tensor | None,
        true: Tensor,
        max_depth: Tensor,
        counted: Tensor | None,
        frozen: Tensor | None,
        gather: bool,
        slope: float,
        offset: float,
        rho: Rho,
    ) -> Tensor:
        at = fixed = None
        if gather and counted is not None:
            # Tensor.nonzero takes three to five times as long.
            at = torch.from_numpy(np.flatnonzero(counted.numpy()))
            student = None if student is None else student.take(at)
            teacher = None if teacher is None else teacher.take(at)
            true = true.take(at)
            fixed = None if frozen is None else frozen.take(at // max(1, counted.shape[1:].numel()))
        elif frozen is not None:
            fixed = frozen.view(-1, *[1] * (true.dim() - 1)).expand_as(true)
        factor = _rho(true, max_depth, rho)
        if student is None or teacher is None:
            weight = torch.ones_like(widen(true)) if factor is None else factor
        else:
            share = _share(student, max_depth)
            limited = share.clamp(0, 1)
            gap = limited - _share(teacher, max_depth).clamp(0, 1)
            weight = slope * gap.abs() + offset
            if fixed is not None:
                weight = torch.where(fixed, offset, weight)
            if factor is not None:
                weight = weight * factor
            if ctx.needs_input_grad[0]:
                # The derivative of |gap| by the limited depth; 0 beyond the limits.
                signed = gap.sign().masked_fill(limited != share, 0)
                ctx.slope, ctx.dtypes = slope, (share.dtype, student.dtype)
                ctx.save_for_backward(max_depth, factor, signed, fixed, None if gather else counted, at)
        if at is not None and counted is not None:
            return weight.new_ones(counted.numel()).index_copy_(0, at, weight).view(counted.shape)
        return weight if counted is None else torch.where(counted, weight, 1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        max_depth, factor, signed, fixed, counted, at = ctx.saved_tensors
        grad = upstream if at is None else upstream.take(at)
        if factor is not None:
            grad = grad * factor
        share_dtype, dtype = ctx.dtypes
        grad = (grad.to(signed.dtype) * ctx.slope * signed).to(share_dtype) / max_depth.to(share_dtype)
        # Filled, since at these locations the depths may be NaN.
        if fixed is not None:
            grad = grad.masked_fill(fixed, 0)
        if counted is not None:
            grad = grad.masked_fill(~counted, 0)
        grad = grad.to(dtype)
        if at is not None:
            grad = grad.new_zeros(upstream.numel()).index_copy_(0, at, grad).view(upstream.shape)
        return grad, None, None, None, None, None, None, None, None, None


def _share(depth: Tensor, max_depth: Tensor) -> Tensor:
    """Returns the depth as a share of the largest, in its arithmetic dtype."""
    wide = widen(depth)
    return wide / max_depth.to(wide.dtype)


def _rho(true_depth: Tensor, max_depth: Tensor, rho: Rho) -> Tensor | None:
    """Returns rho(tau(d_gt)); ``None`` for ``"off"``, which is 1."""
    if rho == "off":
        return None
    tau = _share(true_depth, max_depth).clamp(0, 1)
    return tau.exp() if rho == "exp" else tau + 1


def _check_depths(
    student_depth: Tensor | None,
    teacher_depth: Tensor | None,
    true_depth: Tensor,
    max_depth: Tensor,
    counted: Tensor | None,
    frozen: Tensor | None,
) -> None:
    op = "depth_guidance"
    if (student_depth is None) != (teacher_depth is None):
        raise ValueError(f"{op}: one depth of student and teacher is None; give both or neither")
    check_shape(op, "max_depth", max_depth, (), "a scalar")
    if frozen is not None:
        check_shape(op, "frozen", frozen, true_depth.shape[:1], "(B,)")
    alike = {"student_depth": student_depth, "teacher_depth": teacher_depth, "counted": counted}
    for name, tensor in alike.items():
        if tensor is not None:
            check_shape(op, name, tensor, true_depth.shape, "true_depth's shape")
    for name, tensor in {**alike, "max_depth": max_depth, "frozen": frozen}.items():
        if tensor is not None and tensor.device != true_depth.device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device}, true_depth on {true_depth.device}; move one to the "
                "other"
            )
