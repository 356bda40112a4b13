"""BEV response distillation (structured distillation, Eq. 7-8)."""

from __future__ import annotations

from typing import Any, get_args

from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.methods.base import DistillMethod, register_method
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge
from bevkd2.ops import Reduction, bev_response_l2


@register_method
class BEVResponse(DistillMethod[BEVKnowledge]):
    """Computes the L2 of the BEV responses: the mean absolute BEV embedding over the channels.

    The widths of the two may differ. Cells that no camera sees do not count.

    Args:
        cfg: the method's node: REDUCTION (see :func:`bevkd2.ops.bev_response_l2`).
    """

    node = "BEV_RESPONSE"
    knowledge = BEVKnowledge
    requires = frozenset({"bev_embed", "bev_mask"})

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.reduction = self.one_of(cfg, "REDUCTION", get_args(Reduction))

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds WEIGHT and REDUCTION."""
        super().add_config(node)
        node.REDUCTION = "norm"  # "norm" (the paper's Eq. 8) | "sum" | "cell" | "mean"

    def forward(self, student: BEVKnowledge, teacher: BEVKnowledge, targets: Any) -> Tensor:
        """Returns the loss.

        Raises:
            ValueError: the two have another BEV grid.
        """
        if student.bev_shape != teacher.bev_shape:
            raise ValueError(
                f"DISTILL.{self.node}: the student's BEV grid is {student.bev_shape}, the teacher's "
                f"{teacher.bev_shape} (rows, columns); use the same MODEL.BEVFORMER.BEV_SHAPE"
            )
        mask = student.seen_by_any_camera()
        embeds = student.filled("bev_embed"), teacher.filled("bev_embed")
        return bev_response_l2(*embeds, mask, reduction=self.reduction)
