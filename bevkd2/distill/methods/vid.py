"""VID: variational information distillation (Ahn et al., CVPR 2019, arXiv 1904.05835)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn

from bevkd2.distill.masks import draw_content
from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.feature import FeatureMethod
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.ops.precision import widen

_EPSILON = 1e-5  # added to the variances, as published


@register_method
class VID(FeatureMethod):
    """Computes how unlikely the teacher's features are under the student's Gaussian (Eq. 3 to 6).

    L = mean over maps, rows, cells and channels of ((m(F_s) - F_t)^2 / v + log v) / 2: m is three 1x1
    convolutions without bias and with ReLUs between them, v = softplus(a) + 1e-5 a learned variance per
    channel that begins at INITIAL_VARIANCE. Padding is not counted. The loss has no lower bound but by the
    variances; it may become negative.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: sources that the two do not share, or a variance that is not above 1e-5.
    """

    node = "VID"

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        variance = float(cfg.INITIAL_VARIANCE)
        self.check(variance > _EPSILON, "INITIAL_VARIANCE", f"{variance}; expected a number above {_EPSILON}")
        self.regressors = nn.ModuleList(
            _regressor(source.student_channels, source.teacher_channels) for source in self.sources
        )
        start = math.log(math.expm1(variance - _EPSILON))
        self.log_scales = nn.ParameterList(
            nn.Parameter(torch.full((source.teacher_channels,), start)) for source in self.sources
        )

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods, and INITIAL_VARIANCE."""
        super().add_config(node)
        node.INITIAL_VARIANCE = 5.0  # of every channel, learned from there

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> Tensor:
        """Returns the loss."""
        content = draw_content(self.sources, [pair.shape for pair in pairs], student)
        losses = []
        for pair, mask, regressor, scale in zip(
            pairs, content, self.regressors, self.log_scales, strict=True
        ):
            squares = (widen(regressor(pair.student)) - widen(pair.teacher)).square()
            variance = F.softplus(scale).to(squares.dtype) + _EPSILON
            mean = squares.mean(dim=(0, 2, 3)) if mask is None else _mean_inside(squares, mask)
            losses.append((mean / variance + variance.log()).mean() / 2)
        return torch.stack(losses).mean()


def _mean_inside(squares: Tensor, content: Tensor) -> Tensor:
    """Returns (C,): the mean over the cells of each image, then over the images."""
    weights = content.to(squares.dtype)
    weights = weights / weights.sum(dim=(1, 2), keepdim=True).clamp(min=1) / max(1, len(weights))
    with torch.autocast(squares.device.type, enabled=False):  # squares may be beyond 16 bits
        return torch.einsum("rchw,rhw->c", squares, weights)


def _regressor(channels: int, target: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, target, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(target, target, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(target, target, 1, bias=False),
    )
