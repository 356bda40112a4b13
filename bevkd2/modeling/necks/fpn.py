"""Feature pyramid network (Lin et al., arXiv 1612.03144)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from bevkd2.config import CfgNode, add_config_extension
from bevkd2.d2 import ShapeSpec
from bevkd2.modeling.backbones.norms import make_norm
from bevkd2.modeling.necks.neck import Neck


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
