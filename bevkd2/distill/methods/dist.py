"""DIST: relations between class predictions (Huang et al., NeurIPS 2022, arXiv 2205.10536)."""

from __future__ import annotations

from typing import Any

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.class_prediction import ClassPredictionMethod, mean_over_locations
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.ops.precision import widen

_ACTIVATIONS = ("sigmoid", "softmax")
_EPSILON = 1e-4  # a deviation from the mean that is shorter has no direction


@register_method
class DIST(ClassPredictionMethod):
    """Computes INTER_WEIGHT * L_inter + INTRA_WEIGHT * L_intra (Eq. 8 to 10), times T^2.

    Both are 1 - r, r Pearson's correlation of the student's with the teacher's probabilities: L_inter of the
    classes at a location, averaged over the locations; L_intra of the locations for a class, averaged over
    the classes. So only the relations of the predictions count, and neither their scale nor their offset.

    A sample of the paper is a location here. L_inter is averaged over the locations of all processes'
    batches; L_intra, as published, correlates the locations of the batch of this process. Deviations: the
    default ACTIVATION is sigmoid, since these detectors classify by independent sigmoids; where the teacher's
    numbers differ from their mean by less than 1e-4 (a length), there is no relation, and the term is 0; and
    the lengths in r are bounded below by 1e-4 instead of increased by 1e-8, so that small probabilities keep
    their scale and gradients stay within 16 bits.

    See :class:`ClassPredictionMethod` for what corresponds to what.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: a setting that cannot be, or another number of queries, or other levels of dense heads.
    """

    node = "DIST"

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.activation = self.one_of(cfg, "ACTIVATION", _ACTIVATIONS)
        self.inter_weight, self.intra_weight = float(cfg.INTER_WEIGHT), float(cfg.INTRA_WEIGHT)

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of class predictions, ACTIVATION and the weights of the two relations."""
        super().add_config(node)
        node.ACTIVATION = "sigmoid"  # | "softmax" (the paper's): what the correlated probabilities are
        node.INTER_WEIGHT = 1.0  # relation between the classes at a location
        node.INTRA_WEIGHT = 1.0  # relation between the locations for a class

    def compare(self, student: Tensor, teacher: Tensor, weights: Tensor, targets: Any) -> Tensor:
        """Returns the loss.

        Raises:
            ValueError: a relation between classes, but there is one class.
        """
        classes = student.shape[-1]
        self.check(
            classes > 1 or self.inter_weight == 0,
            "INTER_WEIGHT",
            f"{self.inter_weight}, but the heads have one class, which has no relations; set it to 0",
        )
        ours, theirs = self._probabilities(student), self._probabilities(teacher)
        loss = ours.new_zeros(())
        if classes > 1:
            even = torch.ones_like(ours[..., :1])
            inter = _unrelated(ours, theirs, even, dim=-1)
            loss = loss + self.inter_weight * mean_over_locations(inter, weights)
        rows = ours.flatten(0, 1), theirs.flatten(0, 1), weights.reshape(-1, 1)
        return self.temperature**2 * (loss + self.intra_weight * _unrelated(*rows, dim=0).mean())

    def _probabilities(self, logits: Tensor) -> Tensor:
        logits = widen(logits) / self.temperature
        return logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(dim=-1)


def _unrelated(student: Tensor, teacher: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Returns 1 - r along a dimension, r the weighted correlation; 0 where the teacher is constant."""
    ours, theirs = (_centered(values, weights, dim) for values in (student, teacher))
    square_ours, square_theirs = (values.square().sum(dim) for values in (ours, theirs))
    lengths = square_ours.clamp(min=_EPSILON**2).rsqrt() * square_theirs.clamp(min=_EPSILON**2).rsqrt()
    return torch.where(square_theirs > _EPSILON**2, 1 - (ours * theirs).sum(dim) * lengths, 0.0)


def _centered(values: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Returns the deviations from the weighted mean, times the roots of the weights."""
    weights = weights.to(values.dtype).expand_as(values)
    total = weights.sum(dim, keepdim=True).clamp(min=_EPSILON)
    return (values - (weights * values).sum(dim, keepdim=True) / total) * weights.sqrt()
