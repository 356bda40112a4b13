"""Distillation of class predictions (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from typing import Any, get_args

from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.class_prediction import ClassPredictionMethod
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.losses import share_of_average
from bevkd2.ops import Distance, logit_distance


@register_method
class HintonKD(ClassPredictionMethod):
    """Computes T^2 KL(teacher's predictions || student's), averaged over the locations.

    With DISTANCE softmax_kl that is the paper's loss (section 2): the predictions are softmaxes of the logits
    by T. Two deviations, since these detectors classify by independent sigmoids: the default DISTANCE, kl, is
    the divergence of every class's own Bernoulli distribution, summed over the classes; and T is 1, since
    with the usual 4 a background probability of 0.01 becomes 0.24.

    The mean is over the locations of all processes' batches together; padding does not count. The published
    scripts weigh the loss with 0.9 beside 0.1 of the student's own; here the student's own losses keep their
    weights, and this one has 1.

    See :class:`ClassPredictionMethod` for what corresponds to what.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: a setting that cannot be, or another number of queries, or other levels of dense heads.
    """

    node = "HINTON_KD"

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.distance: Distance = self.one_of(cfg, "DISTANCE", get_args(Distance))

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of class predictions and DISTANCE."""
        super().add_config(node)
        # "kl" (of sigmoids) | "softmax_kl" (the paper's) | "l2" (of probabilities) | "l2_logits"
        node.DISTANCE = "kl"

    def compare(self, student: Tensor, teacher: Tensor, weights: Tensor, targets: Any) -> Tensor:
        """Returns the loss."""
        mean = logit_distance(student, teacher, weights, distance=self.distance, temperature=self.temperature)
        return mean * share_of_average(weights.sum())
