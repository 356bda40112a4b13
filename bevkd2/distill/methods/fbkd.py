"""FBKD: attention-guided and non-local imitation (Zhang and Ma, ICLR 2021).

The paper is "Improve Object Detection with Feature-based Knowledge Distillation: Towards Accurate and
Efficient Detectors".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn

from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.feature import FeatureMethod, spatial_attention, summed_distance
from bevkd2.distill.sources import FeaturePair, FeatureSource
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.ops.precision import arithmetic_dtype, widen

_NON_LOCAL_STRIDE = 32  # pixels between the cells that the non-local blocks read


@register_method
class FBKD(FeatureMethod):
    """Computes the four norms of Zhang and Ma, summed over the maps.

    features = alpha |sqrt(M) (f(F_s) - F_t)| with M = h w softmax(mean over channels of |F| / T), the mean of
    both models' (Eq. 1 to 5); channels = beta |linear(mean over cells of F_s) - mean over cells of F_t|;
    cells = beta |conv(mean over channels of F_s) - mean over channels of F_t|; non_local = gamma |g(r_s(F_s))
    - r_t(F_t)| with a learned non-local block r for each model (Eq. 6 to 8). A norm |.| is the root of the
    sum of squares over the whole batch of one process, so that it is no mean over samples; padding counts as
    any cell.

    The mask over channels is not used, as in the authors' code. Weights are the paper's for one-stage
    detectors. Deviations: non-local blocks have no batch normalisation, since batches have few images; their
    last layer begins at zero instead. Keys are pooled to a stride of 32 pixels, on BEV grids not at all.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: sources that the two do not share, channels that differ without an adapter, or a
            temperature that is not positive.
    """

    node = "FBKD"
    adapter_default = "conv1x1"

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.check(
            cfg.TEMPERATURE > 0, "TEMPERATURE", f"{cfg.TEMPERATURE}; expected a positive number, such as 0.5"
        )
        self.temperature = float(cfg.TEMPERATURE)
        self.feature_weight, self.pooled_weight = float(cfg.FEATURE_WEIGHT), float(cfg.POOLED_WEIGHT)
        self.non_local_weight = float(cfg.NON_LOCAL_WEIGHT)
        self.parts = nn.ModuleList(_Parts(source) for source in self.sources)

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods and the weights of the norms."""
        super().add_config(node)
        # As published for one-stage detectors; two-stage: 7e-5, 4e-3, 7e-5 and a temperature of 0.1
        node.FEATURE_WEIGHT = 4e-4  # alpha
        node.POOLED_WEIGHT = 2e-2  # beta
        node.NON_LOCAL_WEIGHT = 4e-4  # gamma
        node.TEMPERATURE = 0.5  # T of the mask

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> dict[str, Tensor]:
        """Returns the three losses: of features, of pooled features and of the non-local blocks."""
        features, pooled, non_local = [], [], []
        for ours, pair, part in zip(self.adapted(pairs), pairs, self.parts, strict=True):
            assert isinstance(part, _Parts)
            with torch.no_grad():
                mask = spatial_attention(pair.student, self.temperature)
                mask = (mask + spatial_attention(pair.teacher, self.temperature)) / 2
            features.append(_root(summed_distance([ours], [pair.teacher], [1.0], [mask])))
            with torch.autocast(pair.student.device.type, enabled=False):
                channels = part.channels(_mean(pair.student, (2, 3)))
                cells = part.cells(_mean(pair.student, (1,))[:, None])[:, 0]
                pooled.append(torch.linalg.vector_norm(channels - _mean(pair.teacher, (2, 3))))
                pooled.append(torch.linalg.vector_norm(cells - _mean(pair.teacher, (1,))))
                related = part.adapter(part.student(widen(pair.student)))
                teacher = part.teacher.added(widen(pair.teacher))
            # What the teacher's block adds has a gradient, so that it is on the student's side.
            non_local.append(_root(summed_distance([related - teacher], [pair.teacher], [1.0])))
        return {
            "fbkd_features": self.feature_weight * torch.stack(features).sum(),
            "fbkd_pooled": self.pooled_weight * torch.stack(pooled).sum(),
            "fbkd_non_local": self.non_local_weight * torch.stack(non_local).sum(),
        }


class _Parts(nn.Module):
    """The learned parts for one map."""

    def __init__(self, source: FeatureSource) -> None:
        super().__init__()
        ours, theirs = source.student_channels, source.teacher_channels
        pool = 1 if source.stride is None else max(1, _NON_LOCAL_STRIDE // source.stride)
        self.channels = nn.Linear(ours, theirs)
        self.cells = nn.Conv2d(1, 1, 3, padding=1)
        self.student, self.teacher = NonLocal(ours, pool), NonLocal(theirs, pool)
        self.adapter = nn.Conv2d(ours, theirs, 1)


class NonLocal(nn.Module):
    """A non-local block (Wang et al., CVPR 2018, arXiv 1711.07971), form "dot product".

    Args:
        channels: C.
        pool: cells per side of which keys and values take the largest.
    """

    def __init__(self, channels: int, pool: int) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.query, self.key, self.value = (nn.Conv2d(channels, hidden, 1) for _ in range(3))
        self.out = nn.Conv2d(hidden, channels, 1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)
        self.pool = pool

    def added(self, x: Tensor) -> Tensor:
        """Returns what the block adds to its input: zero at first, as its last layer begins at zero.

        Args:
            x: (R, C, h, w).

        Returns:
            (R, C, h, w).
        """
        key, value = (
            F.max_pool2d(layer(x), self.pool, ceil_mode=True).flatten(2) for layer in (self.key, self.value)
        )
        # (query key^T) value = query (key^T value): no product of all pairs of cells is made.
        mixed = value @ key.transpose(1, 2) / key.shape[2]
        query = self.query(x)
        out: Tensor = self.out((mixed @ query.flatten(2)).view_as(query))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Maps (R, C, h, w) to the same shape."""
        return x + self.added(x)


def _mean(features: Tensor, dims: tuple[int, ...]) -> Tensor:
    return features.mean(dim=dims, dtype=arithmetic_dtype(features))


def _root(square: Tensor) -> Tensor:
    """Returns the square root; its derivative at 0 is 0."""
    return square.where(square > 0, 1).sqrt().where(square > 0, 0)
