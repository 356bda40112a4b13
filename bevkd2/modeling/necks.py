"""Necks: the layers between the image backbone and the detector's own.

FPN: Lin et al., arXiv 1612.03144. DLAUp, the aggregation of DLA's levels into one fine map, as CenterNet and
SMOKE use it: Yu et al., arXiv 1707.06484, section 3.2; with deformable nodes: Zhou et al., arXiv 1904.07850,
section 5.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevkd2.config import CfgNode, add_config_extension
from bevkd2.d2 import ShapeSpec
from bevkd2.modeling.backbones.layers import DeformConv2d, make_norm


class Neck(nn.Module):
    """Base of modules from backbone features, name -> (N, C_f, h, w), to a list of levels (N, C, h, w)."""

    strides: list[int]
    """Stride of each level in pixels, finest first."""
    out_channels: int
    """C of every level."""


@add_config_extension
def add_fpn_config(cfg: CfgNode) -> None:
    """Adds MODEL.FPN; IN_FEATURES, OUT_CHANNELS and NORM are Detectron2's."""
    if "FPN" not in cfg.MODEL:
        cfg.MODEL.FPN = CfgNode()
    fpn = cfg.MODEL.FPN
    fpn.IN_FEATURES = ["res5"]  # features of the backbone, finest first
    fpn.OUT_CHANNELS = 256  # channels of every level
    fpn.NUM_OUTS = 1  # levels beyond IN_FEATURES are made by stride-2 convolutions on the coarsest output
    fpn.NORM = ""  # "" | "BN" | "GN"


class ConvNorm(nn.Module):
    """A convolution and an optional normalisation."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=not norm)
        nn.init.xavier_uniform_(self.conv.weight)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        self.norm = make_norm(norm, out_channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C', H', W')."""
        out: Tensor = self.norm(self.conv(x))
        return out


class FPN(Neck):
    """Lateral 1x1, top-down nearest, 3x3; extra levels by stride-2 convolutions on the coarsest output."""

    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        in_features: Sequence[str],
        out_channels: int,
        num_outs: int,
        norm: str = "",
    ) -> None:
        """Builds the convolutions.

        Args:
            input_shape: of the backbone's features, by name.
            in_features: the names to read, finest first.
            out_channels: C of every output.
            num_outs: levels; those beyond ``in_features`` are extra ones, and fewer are the finest ones.
            norm: "" | "BN" | "GN".

        Raises:
            ValueError: an unknown feature name, or no output.
        """
        super().__init__()
        missing = [name for name in in_features if name not in input_shape]
        if missing:
            raise ValueError(
                f"MODEL.FPN.IN_FEATURES: the backbone has no {missing}, only {list(input_shape)}; "
                "name them in MODEL.RESNETS.OUT_FEATURES (or MODEL.TIMM.OUT_INDICES)"
            )
        if num_outs < 1:
            raise ValueError(f"MODEL.FPN.NUM_OUTS is {num_outs}, expected 1 level at least")
        self.in_features = list(in_features)
        self.out_channels = out_channels
        self.lateral_convs = nn.ModuleList(
            ConvNorm(input_shape[name].channels, out_channels, 1, 1, norm) for name in in_features
        )
        extra = max(num_outs - len(self.in_features), 0)
        strides = [1] * (num_outs - extra) + [2] * extra
        self.output_convs = nn.ModuleList(
            ConvNorm(out_channels, out_channels, 3, stride, norm) for stride in strides
        )
        self.strides = [input_shape[name].stride for name in in_features[:num_outs]]
        for _ in range(extra):
            self.strides.append(self.strides[-1] * 2)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> FPN:
        """Builds the pyramid of MODEL.FPN on a backbone whose features are ``input_shape``."""
        fpn = cfg.MODEL.FPN
        return cls(
            input_shape,
            in_features=fpn.IN_FEATURES,
            out_channels=fpn.OUT_CHANNELS,
            num_outs=fpn.NUM_OUTS,
            norm=fpn.NORM,
        )

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Maps features, name -> (N, C_f, h, w), to ``num_outs`` levels (N, C, h, w), finest first."""
        laterals = [
            conv(features[name]) for name, conv in zip(self.in_features, self.lateral_convs, strict=True)
        ]
        for level in range(len(laterals) - 1, 0, -1):
            finer = laterals[level - 1]
            laterals[level - 1] = finer + F.interpolate(
                laterals[level], size=finer.shape[-2:], mode="nearest"
            )
        outs = [conv(x) for conv, x in zip(self.output_convs, laterals, strict=False)]
        for index, conv in enumerate(self.output_convs[len(laterals) :]):
            # The published models have no ReLU before the first extra convolution.
            outs.append(conv(outs[-1] if index == 0 else outs[-1].relu()))
        return outs


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

        Raises:
            ValueError: the finest level has other channels.
        """
        super().__init__()
        if in_channels[0] != out_channels:
            raise ValueError(
                f"IDAUp: the finest level has {in_channels[0]} channels, expected out_channels, "
                f"{out_channels}: nothing projects it; pass its channels as out_channels"
            )
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
