"""Distances of class predictions and the depth-guided weight in plain PyTorch.

They are Eq. 5 and 6 of depth-guided distillation.
Arithmetic is in float32 (float64 where an input is), whatever autocast does; the teacher gets no gradient.
"""

from __future__ import annotations

from typing import Literal, get_args

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
    if teacher_depth is not None:
        teacher_depth = teacher_depth.detach()
    true_depth = true_depth.detach()
    fixed = None if frozen is None else frozen.view(-1, *[1] * (true_depth.dim() - 1)).expand_as(true_depth)
    if counted is None:
        return _guidance(student_depth, teacher_depth, true_depth, fixed, max_depth, slope, offset, rho)
    if counted.device.type == "cpu" and not torch.compiler.is_compiling():
        # Few locations are counted. On CUDA gathering them would wait for the device.
        at = counted.flatten().nonzero()[:, 0]
        optional = (student_depth, teacher_depth, fixed)
        student, teacher, fixed = (None if tensor is None else tensor.take(at) for tensor in optional)
        weight = _guidance(student, teacher, true_depth.take(at), fixed, max_depth, slope, offset, rho)
        return weight.new_ones(counted.numel()).index_copy_(0, at, weight).view(counted.shape)
    if student_depth is not None and student_depth.requires_grad:
        # The fill gives unused locations gradient 0, where the chain rule would give 0 * NaN.
        student_depth = student_depth.masked_fill(~counted, 0)
    weight = _guidance(student_depth, teacher_depth, true_depth, fixed, max_depth, slope, offset, rho)
    return torch.where(counted, weight, 1)


def _guidance(
    student_depth: Tensor | None,
    teacher_depth: Tensor | None,
    true_depth: Tensor,
    fixed: Tensor | None,
    max_depth: Tensor,
    slope: float,
    offset: float,
    rho: Rho,
) -> Tensor:
    """Computes :func:`depth_guidance` at every location.

    Args:
        student_depth: any shape, metres, or ``None``.
        teacher_depth: the same shape, metres, or ``None``.
        true_depth: the same shape, metres.
        fixed: the same shape, bool: locations of frozen samples; or ``None``.
        max_depth: scalar tensor, metres.
        slope: of phi.
        offset: of phi.
        rho: see there.

    Returns:
        The shape of ``true_depth``, float32 (float64 where a depth is).
    """

    def tau(depth: Tensor) -> Tensor:
        return (widen(depth) / max_depth.to(widen(depth).dtype)).clamp(0, 1)

    if student_depth is None or teacher_depth is None:
        weight = torch.ones_like(widen(true_depth))
    else:
        if fixed is not None and student_depth.requires_grad:
            student_depth = student_depth.masked_fill(fixed, 0)  # gradient 0, even if NaN
        weight = slope * (tau(student_depth) - tau(teacher_depth)).abs() + offset
        if fixed is not None:
            weight = torch.where(fixed, offset, weight)
    if rho == "exp":
        return weight * tau(true_depth).exp()
    return weight * (tau(true_depth) + 1) if rho == "linear" else weight


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
