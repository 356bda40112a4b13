"""What the heads of monocular detectors share: branches of convolutions."""

from __future__ import annotations

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

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, C', h, w)."""
        out: Tensor = self.norm(self.conv(x)).relu()
        return out


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
        out: Tensor = self.out(self.convs(x))
        return out if out.dtype == torch.float64 else out.float()


def _initialize(conv: nn.Conv2d, bias: float = 0.0) -> None:
    nn.init.normal_(conv.weight, std=_WEIGHT_STD)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, bias)
