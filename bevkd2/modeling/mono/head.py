"""What the heads of monocular detectors share: branches of convolutions."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bevkd2.modeling.backbones.layers import DeformConv2d, make_norm

# Deviation of the initial weights.
_WEIGHT_STD = 0.01


class ConvGroupNorm(nn.Module):
    """A 3x3 convolution with bias, group normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, deformable: bool = False) -> None:
        super().__init__()
        if deformable:
            # As published, it keeps its uniform initial weights.
            self.conv: nn.Conv2d = DeformConv2d(in_channels, out_channels, bias=True)
            assert self.conv.bias is not None
            nn.init.zeros_(self.conv.bias)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
            _initialize(self.conv)
        self.norm = make_norm("GN", out_channels)

    def pre_activation(self, x: Tensor) -> Tensor:
        """Computes the output before the ReLU.

        Args:
            x: (B, C, h, w).

        Returns:
            (B, C', h, w).
        """
        out: Tensor = self.norm(self.conv(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, C', h, w)."""
        return self.pre_activation(x).relu()


@dataclasses.dataclass
class TowerFeatures:
    """Outputs of the convolutions of a head's two towers, before their ReLU.

    ``classes[level][layer]``, finest level first, is (B, C, h, w).
    """

    classes: list[list[Tensor]] = dataclasses.field(default_factory=list)
    """Of the tower from which classes are predicted."""
    boxes: list[list[Tensor]] = dataclasses.field(default_factory=list)
    """Of the tower from which boxes are predicted."""

    def after(self, layer: int) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the features of all levels after the first ``layer`` convolutions, 1 at least."""
        classes, boxes = ([layers[layer - 1] for layers in tower] for tower in (self.classes, self.boxes))
        return classes, boxes


@dataclasses.dataclass
class HeadPredictions:
    """What a head says at all locations, for methods that compare heads."""

    logits: Tensor
    """(B, Q, K) before the sigmoid."""
    boxes: Tensor
    """(B, Q, n): the head's own box code."""


def run_towers(
    class_tower: nn.Sequential, box_tower: nn.Sequential, x: Tensor, kept: TowerFeatures | None = None
) -> tuple[Tensor, Tensor]:
    """Runs both towers on one level.

    Args:
        class_tower: of :class:`ConvGroupNorm`.
        box_tower: the same.
        x: (B, C, h, w).
        kept: gets the features of all layers.

    Returns:
        (B, C', h, w) of the tower of classes, and of that of boxes.
    """
    if kept is None:
        return class_tower(x), box_tower(x)
    outputs = []
    for tower, levels in ((class_tower, kept.classes), (box_tower, kept.boxes)):
        levels.append([])
        features = x
        for layer in tower:
            assert isinstance(layer, ConvGroupNorm)
            levels[-1].append(layer.pre_activation(features))
            features = levels[-1][-1].relu()
        outputs.append(features)
    return outputs[0], outputs[1]


class Branch(nn.Module):
    """Convolutions, and a 1x1 convolution whose output is float32 at least, whatever autocast does."""

    def __init__(self, in_channels: int, widths: Sequence[int], out_channels: int, bias: float = 0.0) -> None:
        super().__init__()
        channels = [in_channels, *widths]
        self.convs = nn.Sequential(
            *(ConvGroupNorm(before, after) for before, after in itertools.pairwise(channels))
        )
        self.out = nn.Conv2d(channels[-1], out_channels, 1)
        _initialize(self.out, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, out_channels, h, w)."""
        return self.predict(self.convs(x))

    def predict(self, features: Tensor) -> Tensor:
        """Runs the last convolution.

        Args:
            features: (B, C, h, w), the outputs of the convolutions before it.

        Returns:
            (B, out_channels, h, w), float32; float64 stays.
        """
        out: Tensor = self.out(features)
        return out if out.dtype == torch.float64 else out.float()


def _initialize(conv: nn.Conv2d, bias: float = 0.0) -> None:
    nn.init.normal_(conv.weight, std=_WEIGHT_STD)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, bias)
