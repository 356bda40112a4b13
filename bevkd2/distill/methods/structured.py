"""The base class of structured distillation's methods (arXiv 2211.08398): cells, layers, reductions."""

from __future__ import annotations

from typing import get_args

from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.methods.base import DistillMethod
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge
from bevkd2.modeling.losses import share_of_average
from bevkd2.ops import Reduction

_DISTANCES = ("l2", "kl")
_COUNTS = ("cell", "camera")
_LAYERS = ("mean", "sum")


class StructuredMethod(DistillMethod[BEVKnowledge]):
    """Base of the methods on what the BEV encoder computes at every cell.

    The paper leaves open how it reduces; each reading is a setting. Cells that no camera sees do not count
    unless UNSEEN is set. COUNT camera weighs a cell by the number of cameras that see it, as a sum over the
    pairs of cells and cameras does. LAYERS combines pairs of layers.

    Args:
        cfg: the method's node: REDUCTION, DISTANCE, LAYERS, COUNT and UNSEEN.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: a setting that cannot be.
    """

    knowledge = BEVKnowledge

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.reduction: Reduction = self.one_of(cfg, "REDUCTION", get_args(Reduction))
        self.distance = self.one_of(cfg, "DISTANCE", _DISTANCES)
        self.check(
            self.distance == "l2" or self.reduction != "norm",
            "REDUCTION",
            "norm, which is the root of a sum of squares; with DISTANCE kl use sum, cell or mean",
        )
        self.layers = self.one_of(cfg, "LAYERS", _LAYERS)
        self.count, self.unseen = self.one_of(cfg, "COUNT", _COUNTS), bool(cfg.UNSEEN)

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds WEIGHT, its schedule, and how distances are reduced."""
        super().add_config(node)
        # The paper writes the L2 norm and one factor of 0.01: the un-squared norm over a sample is the
        # reading under which that factor balances the magnitudes (docs/distillation.md).
        node.REDUCTION = "norm"  # "norm" | "sum" | "cell" | "mean"
        node.DISTANCE = "l2"  # | "kl": of the teacher's distribution from the student's
        node.LAYERS = "mean"  # | "sum": over the pairs of layers
        node.COUNT = "cell"  # every cell once | "camera": once for every camera that sees it
        node.UNSEEN = False  # count the cells that no camera sees, once

    def cells(self, student: BEVKnowledge) -> Tensor | None:
        """Returns (B, H*W): bool, or how often a cell counts; None: all once."""
        if self.count == "camera":
            cameras: Tensor = student.filled("bev_mask").sum(dim=1)
            return cameras.clamp(min=1) if self.unseen else cameras
        return None if self.unseen else student.seen_by_any_camera()

    def over_layers(self, losses: Tensor, cells: Tensor | None) -> Tensor:
        """Returns the mean or the sum of the losses (L,) of the layers.

        Means over this process's cells are weighted so that the average over the processes is the mean over
        the cells of all.

        Args:
            losses: (L,), reduced by REDUCTION.
            cells: what :meth:`cells` returned.
        """
        loss = losses.sum() if self.layers == "sum" else losses.mean()
        if cells is None or self.reduction in ("norm", "sum"):
            return loss
        return loss * share_of_average(cells.sum())
