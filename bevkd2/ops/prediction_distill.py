"""Distances between class predictions in plain torch (depth-guided distillation, Eq. 5-6).

Arithmetic is in float32 (float64 where an input is), whatever autocast does; the teacher gets no gradient.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from bevkd2.ops.precision import widen

Distance = Literal["l2", "l2_logits", "kl", "softmax_kl"]
Rho = Literal["exp", "linear", "off"]


def class_distance(student: Tensor, teacher: Tensor, distance: Distance, temperature: float = 1.0) -> Tensor:
    """Distance of class predictions at every location, summed over the classes.

    "l2": squared difference of probabilities sigmoid(z). "l2_logits": of logits. "kl": for every class the
    KL divergence of Bernoulli(sigmoid(student / T)) from Bernoulli(sigmoid(teacher / T)), times T^2 (the
    detectors classify by independent sigmoids). "softmax_kl": the KL divergence of softmax(student / T) from
    softmax(teacher / T), times T^2, for heads that choose one class.

    Args:
        student: (..., K) logits.
        teacher: the same shape.
        distance: see above.
        temperature: T of the two KLs.

    Returns:
        (...), float32 (float64 where an input is).

    Raises:
        ValueError: shapes that differ, another distance, a temperature that is not positive.
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
    slope: float = 10.0,
    offset: float = 1.0,
    rho: Rho = "exp",
) -> Tensor:
    """The depth-guided weight of every location (Eq. 5): ``D = phi(|tau(d_s) - tau(d_t)|) * rho(tau(d_gt))``.

    tau(d) = d / max_depth, of depths limited to 0..max_depth; phi(x) = slope * x + offset; rho(x) is exp(x),
    x + 1, or 1.

    Args:
        student_depth: (...) metres; None leaves phi out.
        teacher_depth: likewise.
        true_depth: (...) metres.
        max_depth: scalar tensor, the largest annotated depth of the mini-batch in metres.
        slope, offset: of phi; 10 and 1 in the paper.
        rho: "exp" (the paper's choice), "linear" or "off".

    Returns:
        (...), at least ``offset``.

    Raises:
        ValueError: another rho.
    """
    if rho not in get_args(Rho):
        raise ValueError(f"depth_guidance: rho is {rho!r}; expected one of {get_args(Rho)}")

    def tau(depth: Tensor) -> Tensor:
        return (widen(depth) / max_depth).clamp(0, 1)

    weight = torch.ones_like(widen(true_depth))
    if student_depth is not None and teacher_depth is not None:
        weight = slope * (tau(student_depth) - tau(teacher_depth)).abs() + offset
    if rho == "exp":
        weight = weight * tau(true_depth).exp()
    elif rho == "linear":
        weight = weight * (tau(true_depth) + 1)
    return weight
