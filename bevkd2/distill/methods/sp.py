"""SP: similarities between the images of a batch (Tung and Mori, ICCV 2019, arXiv 1907.09682)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.relations import RelationMethod
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.ops.precision import widen


@register_method
class SP(RelationMethod):
    """Computes the distance of the similarities of rows (Tung and Mori, ICCV 2019, Eq. 2 to 4).

    L = sum over maps of 1 / R^2 |G_s - G_t|^2, where G is F F^T of the R flattened maps with each row divided
    by its norm. Channels may differ, and there is no adapter; padding counts as any cell. The weight is
    RepDistiller's.
    """

    node = "SP"
    resizes = False

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods, with the published weight."""
        super().add_config(node)
        node.WEIGHT = 3000.0  # multiplied by DISTILL.FACTOR

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> Tensor:
        """Returns the loss.

        Raises:
            ValueError: a batch of one row.
        """
        self.check_rows(pairs)
        losses = []
        with torch.autocast(pairs[0].student.device.type, enabled=False):
            for pair in pairs:
                difference = _similarities(pair.student) - _similarities(pair.teacher)
                losses.append(difference.square().sum() / len(pair.student) ** 2)
        return torch.stack(losses).sum()


def _similarities(features: Tensor) -> Tensor:
    """Returns (R, R): products of rows, each row of norm 1."""
    flat = widen(features).flatten(1)
    return F.normalize(flat @ flat.T, dim=1)
