"""OFD: overhauled imitation of features before their ReLU (Heo et al., ICCV 2019, arXiv 1904.01866)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn

from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.feature import FeatureMethod
from bevkd2.distill.sources import FeatureSource
from bevkd2.modeling.backbones import PreActivationBackbone
from bevkd2.modeling.detector import Detector, FeatureShapes
from bevkd2.modeling.knowledge import Knowledge, PreActivation
from bevkd2.ops.precision import widen

_LEAST_MASS = 1e-3  # of the normal distribution below 0, under which the margin is that many deviations:
_LEAST_MARGIN = -3.0


@register_method
class OFD(FeatureMethod):
    """Computes the partial squared distance of the backbones' features before their last ReLU (Eq. 1 to 5).

    L = sum over the maps i of 1 / (R 2^(n - i)) sum over cells and channels of (r(F_s) - max(F_t, m))^2,
    without those entries at which r(F_s) <= max(F_t, m) <= 0. n is the number of the maps, i counts them from
    1; r is a 1x1 convolution without bias and a batch normalisation; m, the margin of a channel, is the mean
    of its negative features, computed from the bias and weight of the teacher's last batch normalisation as
    if they were normally distributed. The weight of 1e-3 is the published code's. Its sum grows with the size
    of the images (there 224 x 224 pixels); padding counts as any cell. Under DDP r's batch normalisation is
    one of each process.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: sources other than stages of the backbone, or a backbone that cannot tell its features
            before the ReLU.
    """

    node = "OFD"

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        if not list(cfg.SOURCES):
            cfg = cfg.clone()
            cfg.SOURCES = [f"backbone.{name}" for name in student.backbone if name in teacher.backbone]
        super().__init__(cfg, student, teacher)
        others = [source.name for source in self.sources if source.field != "backbone"]
        self.check(
            not others,
            "SOURCES",
            f"{', '.join(others)}; expected stages of the backbone, such as backbone.res4, which alone end "
            "in a batch normalisation and a ReLU",
        )
        self.requires = frozenset({"pre_activation"})
        self.connectors = nn.ModuleList(_connector(source) for source in self.sources)

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods, with the published weight."""
        super().add_config(node)
        node.WEIGHT = 1e-3  # multiplied by DISTILL.FACTOR
        node.SOURCES = []  # stages of the backbone: backbone.<name>; []: all that both have

    def attach(self, student: Detector[Any, Any, Any], teacher: Detector[Any, Any, Any]) -> None:
        """Checks that both backbones can tell their features before the ReLU."""
        for role, detector in (("student", student), ("teacher", teacher)):
            backbone = detector.image_backbone
            name = type(backbone).__name__
            self.check(
                isinstance(backbone, PreActivationBackbone),
                "",
                f"the {role}'s backbone, {name}, cannot tell its features before the last ReLU; use a ResNet "
                "(MODEL.BACKBONE.NAME build_bevkd2_resnet_backbone), or leave OFD out of DISTILL.METHODS",
            )
            assert isinstance(backbone, PreActivationBackbone)
            for source in self.sources:
                reason = backbone.lacks_pre_activation(str(source.student_key))
                self.check(not reason, "SOURCES", f"{source.name} of the {role}'s backbone, {name}, {reason}")
        super().attach(student, teacher)

    def forward(self, student: Knowledge, teacher: Knowledge, targets: Any) -> Tensor:
        """Returns the loss."""
        ours, theirs = student.filled("pre_activation"), teacher.filled("pre_activation")
        losses = []
        for i, (source, connector) in enumerate(zip(self.sources, self.connectors, strict=True)):
            found: PreActivation = theirs[source.teacher_key]
            wanted = widen(found.features.detach()).maximum(negative_mean(found)[:, None, None])
            predicted = widen(connector(ours[source.student_key].features))
            if wanted.shape[-2:] != predicted.shape[-2:]:
                wanted = F.interpolate(
                    wanted, size=predicted.shape[-2:], mode="bilinear", align_corners=False
                )
            counted = (predicted > wanted) | (wanted > 0)
            squares = (predicted - wanted).square().where(counted, 0)
            losses.append(squares.sum() / (len(predicted) * 2 ** (len(self.sources) - 1 - i)))
        return torch.stack(losses).sum()


def negative_mean(found: PreActivation) -> Tensor:
    """Computes the expectation of each channel's negative features, normally distributed.

    Where hardly any are negative (less than 0.001 of them), it is three deviations below 0, as published.

    Args:
        found: with the mean and deviation of C channels.

    Returns:
        (C,) float32 (float64 where the statistics are).
    """
    mean, std = widen(found.mean.detach()), widen(found.std.detach()).clamp(min=1e-12)
    ratio = mean / std
    mass = torch.special.ndtr(-ratio)
    density = (-ratio.square() / 2).exp() / math.sqrt(2 * math.pi)
    expected = mean - std * density / mass.clamp(min=_LEAST_MASS)
    margin: Tensor = expected.where(mass > _LEAST_MASS, _LEAST_MARGIN * std)
    return margin


def _connector(source: FeatureSource) -> nn.Sequential:
    conv = nn.Conv2d(source.student_channels, source.teacher_channels, 1, bias=False)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / source.teacher_channels))
    return nn.Sequential(conv, nn.BatchNorm2d(source.teacher_channels))
