"""Modulated deformable convolution (DCNv2, Zhu et al., arXiv 1811.11168)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DeformConv2d(nn.Conv2d):
    """A 3x3 convolution whose taps are shifted and weighted as its input says.

    The offsets start at zero and the modulation at one half, so initially it is half of a plain convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, groups: int = 1, bias: bool = False
    ) -> None:
        """Makes both convolutions.

        Args:
            in_channels: channels read.
            out_channels: channels written.
            stride: in pixels.
            groups: of the main convolution.
            bias: of the main convolution.
        """
        super().__init__(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=bias)
        # 27 channels: 18 offsets (y, x of every tap), then 9 modulation logits.
        self.conv_offset = nn.Conv2d(in_channels, 27, 3, stride, padding=1)
        nn.init.zeros_(self.conv_offset.weight)
        assert self.conv_offset.bias is not None
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C', H', W'), computed in float32 at least whatever autocast does."""
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            offset, modulation = self.conv_offset(x).split((18, 9), dim=1)
            out: Tensor = deform_conv2d(
                x,
                offset.contiguous(),
                self.weight,
                self.bias,
                stride=self.stride,
                padding=self.padding,
                mask=modulation.sigmoid(),
            )
            return out
