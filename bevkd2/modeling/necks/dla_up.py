"""The aggregation of DLA's levels into one fine map, as CenterNet and SMOKE use it.

Deep layer aggregation: Yu et al., arXiv 1707.06484, section 3.2; with deformable nodes: Zhou et al., arXiv
1904.07850, section 5.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bevkd2.config import CfgNode, add_config_extension
from bevkd2.d2 import ShapeSpec
from bevkd2.modeling.backbones.deform_conv import DeformConv2d
from bevkd2.modeling.backbones.norms import make_norm
from bevkd2.modeling.necks.neck import Neck


@add_config_extension
def add_dla_up_config(cfg: CfgNode) -> None:
    """Adds MODEL.DLA_UP."""
    node = cfg.MODEL.DLA_UP = CfgNode()
    node.IN_FEATURES = ["res2", "res3", "res4", "res5"]  # finest first, each of twice the stride before
    node.OUT_CHANNELS = 0  # 0: those of the finest feature, as published (DLA-34: 64, DLA-60: 128)


class DeformNode(nn.Module):
    """DCNv2, group normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = DeformConv2d(in_channels, out_channels, bias=True)
        self.gn = make_norm("GN", out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C', H, W)."""
        out: Tensor = self.gn(self.conv(x)).relu()
        return out


class Upsample(nn.ConvTranspose2d):
    """A depthwise transposed convolution that starts as bilinear interpolation."""

    def __init__(self, channels: int, factor: int) -> None:
        """Makes the layer.

        Args:
            channels: read and written.
            factor: of upsampling, even.
        """
        super().__init__(channels, channels, 2 * factor, factor, factor // 2, groups=channels, bias=False)
        position = (torch.arange(2 * factor) + 0.5) / factor - 1  # of the taps from the centre, in cells
        tent = 1 - position.abs()
        with torch.no_grad():
            self.weight.copy_((tent[:, None] * tent).expand_as(self.weight))


class IDAUp(nn.Module):
    """Iterative aggregation: every coarser level is projected, upsampled and merged into the one before."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, factors: Sequence[int]) -> None:
        """Makes the layers.

        Args:
            in_channels: of the levels, finest first; the finest has ``out_channels``.
            out_channels: of every result.
            factors: of the levels' strides to the finest one's, the first 1.
        """
        super().__init__()
        assert in_channels[0] == out_channels, (in_channels, out_channels)
        self.projections = nn.ModuleList(DeformNode(c, out_channels) for c in in_channels[1:])
        self.upsamplings = nn.ModuleList(Upsample(out_channels, factor) for factor in factors[1:])
        self.nodes = nn.ModuleList(DeformNode(out_channels, out_channels) for _ in in_channels[1:])

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Maps levels (N, C_l, h_l, w_l), finest first, to as many maps of the finest size."""
        merged = [levels[0]]
        for level, project, upsample, node in zip(
            levels[1:], self.projections, self.upsamplings, self.nodes, strict=True
        ):
            merged.append(node(upsample(project(level)) + merged[-1]))
        return merged


class DLAUp(Neck):
    """The backbone's levels to one map of the finest one's stride."""

    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_features: Sequence[str],
        out_channels: int = 0,
    ) -> None:
        """Builds the layers.

        Args:
            input_shape: of the backbone's features, by name.
            in_features: the names to read, finest first, each of twice the stride of the one before. The
                coarsest reaches the output through the others only.
            out_channels: C of the output; 0: those of the finest feature, as published.

        Raises:
            ValueError: an unknown feature name, fewer than two of them, or strides that do not double.
        """
        super().__init__()
        missing = [name for name in in_features if name not in input_shape]
        if missing or len(in_features) < 2:
            raise ValueError(
                f"MODEL.DLA_UP.IN_FEATURES is {list(in_features)}, expected two or more of "
                f"{list(input_shape)}; MODEL.TIMM.OUT_INDICES or MODEL.RESNETS.OUT_FEATURES sets what "
                "the backbone returns"
            )
        strides = [input_shape[name].stride for name in in_features]
        if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(strides)):
            raise ValueError(
                f"MODEL.DLA_UP.IN_FEATURES {list(in_features)} have strides {strides}, expected each to be "
                "twice the one before"
            )
        channels = [input_shape[name].channels for name in in_features]
        count = len(channels)
        self.in_features = list(in_features)
        self.strides = [strides[0]]
        self.out_channels = out_channels or channels[0]
        # One stage per level but the coarsest, coarse to fine: it merges what is coarser into its level.
        self.stages = nn.ModuleList(
            IDAUp(
                [channels[level], *[channels[level + 1]] * (count - level - 1)],
                channels[level],
                [1] + [2] * (count - level - 1),
            )
            for level in range(count - 2, -1, -1)
        )
        keeps = self.out_channels == channels[0]
        self.reduce = nn.Identity() if keeps else DeformNode(channels[0], self.out_channels)
        self.final = IDAUp(
            [self.out_channels, *channels[1:-1]], self.out_channels, [2**i for i in range(count - 1)]
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> DLAUp:
        """Builds the neck of MODEL.DLA_UP on a backbone whose features are ``input_shape``."""
        node = cfg.MODEL.DLA_UP
        return cls(input_shape, in_features=node.IN_FEATURES, out_channels=node.OUT_CHANNELS)

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Maps backbone features, name -> (N, C_f, h, w), to one level (N, C, h, w) in a list."""
        levels = [features[name] for name in self.in_features]
        merged = [levels.pop()]
        aggregated: list[Tensor] = []  # one map per level, finest first
        for stage, level in zip(self.stages, reversed(levels), strict=True):
            merged = stage([level, *merged])
            aggregated.insert(0, merged[-1])
        aggregated[0] = self.reduce(aggregated[0])
        return [self.final(aggregated)[-1]]
