"""ReviewKD: knowledge review across levels (Chen et al., CVPR 2021, arXiv 2104.09044)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn

from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.feature import FeatureMethod
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.ops.precision import widen

_POOLED = (4, 2, 1)  # rows and columns of the pooled maps


@register_method
class ReviewKD(FeatureMethod):
    """Computes the hierarchical distance of the teacher's maps from the student's fused ones (Eq. 5, Fig. 3).

    The student's maps are fused from the last source to the first, the coarsest level to the finest: an
    attention-based fusion (ABF) maps a level to MID_CHANNELS, adds the fused level below it, resized
    (nearest), each weighted by a map of its own, and makes the teacher's channels of the sum by a 3x3
    convolution. Each is compared with the teacher's map of that level by the hierarchical context loss (HCL):
    the mean squared distance of the maps, and of their averages in 4 x 4, 2 x 2 and 1 x 1 windows, weighted
    1, 1/2, 1/4 and 1/8 and divided by the sum of these weights; windows that are no smaller than the map are
    left out. The levels are summed. WEIGHT and MID_CHANNELS are those of the published detection code.

    As published, the fusion has batch normalisation, whose statistics are those of the batch of this process,
    so that a batch is not the mean of its samples; and padding counts as any cell. Sources are listed from
    the finest to the coarsest; of ``bev.layers``, from the first layer to the last.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: sources that the two do not share, fewer than two maps, or maps of images and of the
            bird's-eye view together.
    """

    node = "REVIEW_KD"

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        names = [source.name for source in self.sources]
        planes = {source.plane for source in self.sources}
        self.check(
            len(names) > 1 and len(planes) == 1,
            "SOURCES",
            f"{', '.join(names)}; expected at least two maps, all in images or all on the BEV grid",
        )
        strides = [source.stride or 0 for source in self.sources]
        self.check(
            strides == sorted(strides),
            "SOURCES",
            f"{', '.join(names)} have strides {strides}; list the finest first",
        )
        middle = int(cfg.MID_CHANNELS)
        self.check(middle > 0, "MID_CHANNELS", f"{middle}; expected a number above 0")
        last = len(self.sources) - 1
        self.fusions = nn.ModuleList(
            _Fusion(source.student_channels, middle, source.teacher_channels, fuses=i < last)
            for i, source in enumerate(self.sources)
        )

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods and MID_CHANNELS."""
        super().add_config(node)
        node.MID_CHANNELS = 256  # width in which the levels are fused

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> Tensor:
        """Returns the loss."""
        losses = []
        fused: Tensor | None = None
        for pair, fusion in zip(reversed(pairs), reversed(self.fusions), strict=True):
            made, fused = fusion(pair.student, fused)
            losses.append(_hierarchical_distance(made, pair.teacher))
        return torch.stack(losses).sum()


class _Fusion(nn.Module):
    """Attention-based fusion of one level with the fused level below it."""

    def __init__(self, channels: int, middle: int, out_channels: int, fuses: bool) -> None:
        """Makes the layers.

        Args:
            channels: of the student's level.
            middle: of the fused levels.
            out_channels: of the teacher's level.
            fuses: there is a level below.
        """
        super().__init__()
        first = nn.Conv2d(channels, middle, 1, bias=False)
        last = nn.Conv2d(middle, out_channels, 3, padding=1, bias=False)
        for layer in (first, last):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        self.reduce = nn.Sequential(first, nn.BatchNorm2d(middle))
        self.expand = nn.Sequential(last, nn.BatchNorm2d(out_channels))
        self.attention = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuses else None

    def forward(self, features: Tensor, below: Tensor | None) -> tuple[Tensor, Tensor]:
        """Fuses a level.

        Args:
            features: (R, C, h, w) of the student.
            below: (R, middle, h', w'), fused; None at the coarsest level.

        Returns:
            (R, C', h, w) with the teacher's channels, and the fused level (R, middle, h, w).
        """
        fused = self.reduce(features)
        if self.attention is not None and below is not None:
            below = F.interpolate(below, size=fused.shape[-2:], mode="nearest")
            shares = self.attention(torch.cat([fused, below], dim=1))
            fused = fused * shares[:, :1] + below * shares[:, 1:]
        return self.expand(fused), fused


def _hierarchical_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the hierarchical context loss, a scalar."""
    difference = widen(student) - widen(teacher)
    loss, weight, total = difference.square().mean(), 1.0, 1.0
    for size in _POOLED:
        if size >= min(difference.shape[-2:]):
            continue
        weight /= 2
        total += weight
        loss = loss + weight * _pooled(difference, size).square().mean()
    return loss / total


def _pooled(features: Tensor, size: int) -> Tensor:
    """Returns the averages in size x size windows, as adaptive pooling does; deterministic on CUDA."""
    rows, columns = (_windows(length, size, features) for length in features.shape[-2:])
    with torch.autocast(features.device.type, enabled=False):
        return rows @ features @ columns.T


def _windows(length: int, size: int, like: Tensor) -> Tensor:
    """Returns (size, length): the window i averages the cells from i * length / size, rounded outwards."""
    at, window = torch.arange(length, device=like.device), torch.arange(size, device=like.device)[:, None]
    inside = (at >= window * length // size) & (at < -(-(window + 1) * length // size))
    return inside.to(like.dtype) / inside.sum(dim=1, keepdim=True)
