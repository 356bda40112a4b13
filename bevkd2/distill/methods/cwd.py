"""CWD: channel-wise distillation (Shu et al., ICCV 2021, arXiv 2011.13256)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.feature import FeatureMethod
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.ops import channel_wise_kl


@register_method
class CWD(FeatureMethod):
    """Computes the KL divergence of every channel's softmax over the cells from the teacher's (Eq. 4 and 5).

    For one map it is T^2 / C * sum over channels of KL(softmax(F_t / T) || softmax(F_s / T)), averaged over
    the images; the maps are summed. So a channel teaches where it is large, whatever its scale. As published,
    padding counts as any cell. T and WEIGHT are those of the published configs for detection on FPN; the
    paper's own, for segmentation, are 4 and 50. FocalDistiller's are 2 and 0.25.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: sources that the two do not share, or channels that differ without an adapter.
    """

    node = "CWD"
    adapter_default = "auto"

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.temperature = float(cfg.TEMPERATURE)
        self.check(self.temperature > 0, "TEMPERATURE", f"{self.temperature}; expected a number above 0")

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods, with the published weight, and TEMPERATURE."""
        super().add_config(node)
        node.WEIGHT = 10.0  # as published; multiplied by DISTILL.FACTOR, which was 1
        node.TEMPERATURE = 1.0  # divides both models' features

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> Tensor:
        """Returns the loss."""
        teachers = [pair.teacher for pair in pairs]
        return channel_wise_kl(self.adapted(pairs), teachers, temperature=self.temperature).sum()
