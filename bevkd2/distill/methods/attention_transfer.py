"""AT: attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.masks import draw_content
from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.feature import FeatureMethod
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.ops import absolute_means
from bevkd2.ops.precision import widen


@register_method
class AT(FeatureMethod):
    """Computes the mean squared distance of normalised attention maps (Eq. 2), summed over the maps.

    L = sum over maps of mean over rows and cells of (Q_s / |Q_s| - Q_t / |Q_t|)^2 with Q = mean over channels
    of |F|^p, as RepDistiller and the authors' code; channels may differ, and there is no adapter. Padding has
    no attention, but counts in the mean over the cells. The weight is RepDistiller's. A POWER of 1 or 2 is
    computed by a fused op, other powers in plain torch, with more time and memory.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: sources that the two do not share, or a power that is not positive.
    """

    node = "AT"

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.check(cfg.POWER > 0, "POWER", f"{cfg.POWER}; expected a positive number, such as 2")
        self.power = float(cfg.POWER)

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods, with the published weight, and POWER."""
        super().add_config(node)
        node.WEIGHT = 1000.0  # multiplied by DISTILL.FACTOR
        node.POWER = 2.0  # p

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> Tensor:
        """Returns the loss."""
        content = draw_content(self.sources, [pair.shape for pair in pairs], student)
        losses = [
            (self._attention(pair.student, mask) - self._attention(pair.teacher, mask)).square().mean()
            for pair, mask in zip(pairs, content, strict=True)
        ]
        return torch.stack(losses).sum()

    def _attention(self, features: Tensor, content: Tensor | None) -> Tensor:
        """Returns (R, cells) of norm 1."""
        if self.power in (1, 2):
            attention = absolute_means(features, power=1 if self.power == 1 else 2).pixels
        else:
            attention = widen(features).abs().pow(self.power).mean(dim=1)
        if content is not None:
            attention = attention * content.to(attention)
        return F.normalize(attention.flatten(1), dim=1)
