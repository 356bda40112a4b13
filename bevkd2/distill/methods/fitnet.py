"""FitNet: plain imitation of features (Romero et al., ICLR 2015, arXiv 1412.6550)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bevkd2.distill.masks import draw_content
from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.feature import FeatureMethod, summed_distance
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.ops.precision import widen


@register_method
class FitNet(FeatureMethod):
    """Computes the mean squared distance of features after an adapter, averaged over the maps (Eq. 3).

    L = mean over maps and rows of 1 / (C N) sum over N cells and C channels of (f(F_s) - F_t)^2; padding is
    not counted. It is PerspectiveFeature without its matrix, on any source. The hint of the paper begins the
    training alone; here it is a loss beside the others. The weight is 1, as depth-guided distillation
    compares it; on CIFAR, RepDistiller uses 100.
    """

    node = "FITNET"
    adapter_default = "conv1x1"

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> Tensor:
        """Returns the loss."""
        content = draw_content(self.sources, [pair.shape for pair in pairs], student)
        ours, theirs = self.adapted(pairs), [pair.teacher for pair in pairs]
        scales, weights = [], []
        for features, mask in zip(ours, content, strict=True):
            rows, channels, *shape = features.shape
            scales.append(1 / (len(pairs) * rows * channels))
            if mask is None:
                weights.append(
                    widen(features.detach()).new_full((rows, *shape), 1 / max(1, shape[0] * shape[1]))
                )
            else:
                weights.append(mask / mask.sum(dim=(1, 2), keepdim=True).clamp(min=1))
        return summed_distance(ours, theirs, scales, weights)
