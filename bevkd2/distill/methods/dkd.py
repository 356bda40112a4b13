"""DKD: decoupled distillation of class predictions (Zhao et al., CVPR 2022, arXiv 2203.08679)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.class_prediction import ClassPredictionMethod, mean_over_locations
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import MonoKnowledge
from bevkd2.ops.precision import widen

_ACTIVATIONS = ("sigmoid", "softmax")


@register_method
class DKD(ClassPredictionMethod):
    """Computes ALPHA * TCKD + BETA * NCKD at the objects' locations (Eq. 7), averaged over them.

    TCKD is T^2 KL of the two-way distribution (p, 1 - p), p the probability of the location's true class;
    NCKD is T^2 KL of the softmax over the other classes. The true class is that of the object which the
    student's assignment gives the location.

    With ACTIVATION softmax, p is the true class's softmax over all classes, as published. The default,
    sigmoid, reads p from the true class's own sigmoid, since these detectors classify by independent
    sigmoids; NCKD stays a softmax over the other classes, which compares how similar they are to the object.
    With one class there are no others, and NCKD is 0.

    Locations without an object do not count: they have no true class (as published for detection, where they
    have the background's). ALPHA, BETA and T are those of the published detection code. The mean is over the
    objects' locations of all processes' batches together, at least 1.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: a setting that cannot be, or other levels of the two heads.
    """

    node = "DKD"
    knowledge = MonoKnowledge
    fixed_locations = "objects"

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.activation = self.one_of(cfg, "ACTIVATION", _ACTIVATIONS)
        self.alpha, self.beta = float(cfg.ALPHA), float(cfg.BETA)

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of class predictions, ACTIVATION, ALPHA and BETA."""
        super().add_config(node)
        node.ACTIVATION = "sigmoid"  # | "softmax" (the paper's): the true class's probability
        node.ALPHA = 1.0  # weight of the true class's term
        node.BETA = 0.25  # weight of the other classes' term; 8 in classification

    def compare(self, student: Tensor, teacher: Tensor, weights: Tensor, targets: Any) -> Tensor:
        """Returns the loss.

        Raises:
            ValueError: ACTIVATION softmax with one class.
        """
        classes = student.shape[-1]
        self.check(
            classes > 1 or self.activation == "sigmoid",
            "ACTIVATION",
            "softmax, but the heads have one class, whose softmax is 1 everywhere; use sigmoid",
        )
        true_class = targets.labels_of_locations()
        is_true = F.one_hot(true_class, classes).bool()
        ours, theirs = widen(student) / self.temperature, widen(teacher) / self.temperature
        loss = self.alpha * self._true_class(ours, theirs, is_true)
        if classes > 1:
            loss = loss + self.beta * _other_classes(ours, theirs, is_true)
        return self.temperature**2 * mean_over_locations(loss, weights)

    def _true_class(self, student: Tensor, teacher: Tensor, is_true: Tensor) -> Tensor:
        """Returns (B, Q): KL of the distributions (p, 1 - p)."""
        ours, theirs = (self._two_way(logits, is_true) for logits in (student, teacher))
        (yes, no), (yes_t, no_t) = ours, theirs
        return yes_t.exp() * (yes_t - yes) + no_t.exp() * (no_t - no)

    def _two_way(self, logits: Tensor, is_true: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the logarithms (B, Q) of p and of 1 - p."""
        true = torch.where(is_true, logits, 0.0).sum(dim=-1)
        if self.activation == "softmax":
            # p / (1 - p) is the true class's exponential by the sum of the others'.
            true = true - logits.masked_fill(is_true, -torch.inf).logsumexp(dim=-1)
        return F.logsigmoid(true), F.logsigmoid(-true)


def _other_classes(student: Tensor, teacher: Tensor, is_true: Tensor) -> Tensor:
    """Returns (B, Q): KL of the softmaxes over all classes but the true one."""
    ours, theirs = (
        logits.masked_fill(is_true, -torch.inf).log_softmax(dim=-1) for logits in (student, teacher)
    )
    return (theirs.exp() * torch.where(is_true, 0.0, theirs - ours)).sum(dim=-1)
