"""PKD: imitation of normalised features (Cao et al., NeurIPS 2022, arXiv 2207.02039)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.feature import FeatureMethod
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.ops import normalized_l2

_EPSILON = 1e-6  # added to deviations, as published


@register_method
class PKD(FeatureMethod):
    """Computes half the mean squared distance of features whose channels are normalised (Eq. 5 to 7).

    Every channel of each model gets mean 0 and deviation 1 over all cells of the batch of this process, so
    that neither scale nor offset of the teacher's features matters. The loss is summed over the maps. As
    published, padding counts as any cell, and a batch is not the mean of its samples.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: sources that the two do not share, or channels that differ without an adapter.
    """

    node = "PKD"
    adapter_default = "auto"

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods, with the published weight."""
        super().add_config(node)
        node.WEIGHT = 10.0  # as published; multiplied by DISTILL.FACTOR, which was 1

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> Tensor:
        """Returns the loss."""
        # A call per map: under autocast, maps with an adapter and maps without one differ in dtype.
        losses = [
            normalized_l2(ours, pair.teacher, epsilon=_EPSILON)
            for ours, pair in zip(self.adapted(pairs), pairs, strict=True)
        ]
        return torch.stack(losses).sum()
