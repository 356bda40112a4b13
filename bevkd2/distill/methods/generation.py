"""The base class of methods that restore the teacher's features from the student's masked ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn

from bevkd2.distill.methods.feature import FeatureMethod
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.detector import FeatureShapes


class GenerationMethod(FeatureMethod):
    """Base of methods with a generator for every map: two 3x3 convolutions with a ReLU between them.

    Args:
        cfg: the method's node: that of :class:`FeatureMethod` and MASK_RATIO, the share of the cells that are
            set to 0.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: sources that the two do not share, channels that differ without an adapter, or a share
            that is not in [0, 1).
    """

    adapter_default = "auto"

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.mask_ratio = float(cfg.MASK_RATIO)
        self.check(
            0 <= self.mask_ratio < 1, "MASK_RATIO", f"{self.mask_ratio}; expected a share from 0 to below 1"
        )
        self.generators = nn.ModuleList(_make_generator(source.teacher_channels) for source in self.sources)

    def generated(self, pairs: Sequence[FeaturePair]) -> list[Tensor]:
        """Runs the generators on the student's adapted and masked maps.

        The masks are drawn from the global random state, other ones in every step.

        Args:
            pairs: of :meth:`pairs`, one of each source.

        Returns:
            (R, C', h, w) each.
        """
        return [
            generator(self._masked(ours))
            for generator, ours in zip(self.generators, self.adapted(pairs), strict=True)
        ]

    def _masked(self, features: Tensor) -> Tensor:
        draws = torch.rand(len(features), 1, *features.shape[-2:], device=features.device)
        return features * (draws >= self.mask_ratio).to(features.dtype)


def _make_generator(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1),
    )
