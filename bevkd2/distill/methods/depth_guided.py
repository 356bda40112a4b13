"""Depth-guided prediction distillation (depth-guided distillation, Eq. 5-6)."""

from __future__ import annotations

from typing import get_args

from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.methods.base import DistillMethod, register_method
from bevkd2.distill.methods.dense import check_same_locations, content_of_locations
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import MonoKnowledge
from bevkd2.modeling.losses import max_over_ranks, share_of_average
from bevkd2.modeling.mono.inputs import MonoTargets
from bevkd2.ops import Distance, Rho, depth_guidance, prediction_loss

_DEPTHS = {"decoded": "depth", "direct": "direct_depth", "probabilistic": "probabilistic_depth"}


@register_method
class DepthGuidedPrediction(DistillMethod[MonoKnowledge]):
    """Computes the distance of class predictions, weighted by depth where there are objects.

    L_p = a_obj / K_obj * sum over objects' locations of D * l + a_bg / K_bg * sum over the others of l, where
    l is the distance of the two class predictions at a location, summed over the classes, and D the
    depth-guided weight (:func:`bevkd2.ops.depth_guidance`). Objects' locations are those that the student's
    assignment gives an object; K counts them over the batch of all processes. Locations in the padding are
    neither. In images that were shifted or scaled, from which no depth is learned (SMOKE's augmentation),
    the two depths count as equal, so that phi is its offset; rho is as anywhere.

    Args:
        cfg: the method's node.
        student: not read.
        teacher: not read.

    Raises:
        ValueError: a setting that cannot be.
    """

    node = "DEPTH_GUIDED"
    knowledge = MonoKnowledge
    requires = frozenset({"logits", "grid", "image_sizes"})

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.distance = self.one_of(cfg, "DISTANCE", get_args(Distance))
        self.rho = self.one_of(cfg, "RHO", get_args(Rho))
        self.depth_field = _DEPTHS[self.one_of(cfg, "DEPTH", _DEPTHS)]
        self.temperature, self.detach = cfg.TEMPERATURE, cfg.DETACH_DEPTH
        self.depth_attention, self.slope, self.offset = cfg.DEPTH_ATTENTION, cfg.PHI_SLOPE, cfg.PHI_OFFSET
        if self.depth_attention:
            self.requires = self.requires | {self.depth_field}
        self.object_weight, self.background_weight = cfg.OBJECT_WEIGHT, cfg.BACKGROUND_WEIGHT

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds WEIGHT and the keys of Eq. 5 and 6."""
        super().add_config(node)
        # Eq. 6 prints KL; the paper's Table 1 and its final row use L2. On what L2 acts it does not say.
        node.DISTANCE = "l2"  # of probabilities | "l2_logits" | "kl" (of sigmoids) | "softmax_kl"
        node.TEMPERATURE = 1.0  # of the KLs
        node.DEPTH_ATTENTION = True  # phi(|tau(d_s) - tau(d_t)|), the column D of Table 1
        node.PHI_SLOPE = 10.0  # slope of phi (Eq. 5)
        node.PHI_OFFSET = 1.0  # phi at a difference of zero
        node.RHO = "exp"  # | "linear" | "off": the column W of Table 1
        # Which depth tau normalises: what decoding uses (fused where the head fuses), the regressed one, or
        # the expectation over the depth bins.
        node.DEPTH = "decoded"  # | "direct" | "probabilistic"
        # Without it the student could lower the loss by moving its depth, which the weight does not mean.
        node.DETACH_DEPTH = True
        node.OBJECT_WEIGHT = 1.0  # weight of the objects' locations
        node.BACKGROUND_WEIGHT = 1.0  # weight of the other locations

    def forward(self, student: MonoKnowledge, teacher: MonoKnowledge, targets: MonoTargets) -> Tensor:
        """Returns the loss.

        Raises:
            ValueError: the two do not predict at the same locations, or a head has no such depth.
        """
        self._check_depth("student", student)
        self._check_depth("teacher", teacher)
        check_same_locations(self.node, student, teacher)
        objects, content = targets.assignment() >= 0, content_of_locations(student)
        losses = prediction_loss(
            student.filled("logits"),
            teacher.filled("logits"),
            objects,
            self._guidance(student, teacher, targets, objects & content),
            content,
            distance=self.distance,
            temperature=self.temperature,
            object_weight=self.object_weight,
            background_weight=self.background_weight,
        )
        counted, rest = (objects & content).sum(), (~objects & content).sum()
        return losses.objects * share_of_average(counted) + losses.background * share_of_average(rest)

    def _guidance(
        self, student: MonoKnowledge, teacher: MonoKnowledge, targets: MonoTargets, counted: Tensor
    ) -> Tensor:
        """Returns D of Eq. 5 at the locations that are counted."""
        depth = getattr(student, self.depth_field) if self.depth_attention else None
        return depth_guidance(
            depth.detach() if depth is not None and self.detach else depth,
            getattr(teacher, self.depth_field) if self.depth_attention else None,
            targets.depth_of_locations(),
            max_over_ranks(targets.max_depth),
            counted=counted,
            frozen=targets.affine_augmented,
            slope=self.slope,
            offset=self.offset,
            rho=self.rho,
        )

    def _check_depth(self, who: str, knowledge: MonoKnowledge) -> None:
        there = not self.depth_attention or getattr(knowledge, self.depth_field) is not None
        self.check(there, "DEPTH", f"the {who}'s head has no {self.depth_field}; use decoded or direct")
