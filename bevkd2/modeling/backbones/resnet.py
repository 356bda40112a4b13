"""ResNet and ResNeXt backbones with torchvision's key names, caffe's stride, and DCNv2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bevkd2.config import CfgNode
from bevkd2.d2 import BACKBONE_REGISTRY, Backbone, ShapeSpec
from bevkd2.modeling.backbones.initial_weights import load_backbone_weights
from bevkd2.modeling.backbones.layers import DeformConv2d, freeze_parameters, make_norm
from bevkd2.modeling.knowledge import PreActivation

BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BASIC_DEPTHS = (10, 18, 34)
FEATURES = ("stem", "res2", "res3", "res4", "res5")
STRIDES = (4, 4, 8, 16, 32)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = make_norm(norm, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = make_norm(norm, out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C', H / stride, W / stride)."""
        return self.pre_activation(x).relu()

    def pre_activation(self, x: Tensor) -> Tensor:
        """Computes the block's output before its last ReLU.

        Args:
            x: (N, C, H, W).

        Returns:
            (N, C', H / stride, W / stride).
        """
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out))
        features: Tensor = out + self.downsample(x)
        return features

    @property
    def last_norm(self) -> nn.Module:
        """Returns the normalisation before the sum."""
        return self.bn2


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped or deformable), 1x1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        norm: str,
        width: int,
        groups: int,
        stride_in_1x1: bool,
        deformable: bool,
    ) -> None:
        super().__init__()
        stride1, stride3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride1, bias=False)
        self.bn1 = make_norm(norm, width)
        if deformable:
            self.conv2: nn.Conv2d = DeformConv2d(width, width, stride=stride3, groups=groups)
        else:
            self.conv2 = nn.Conv2d(width, width, 3, stride3, padding=1, groups=groups, bias=False)
        self.bn2 = make_norm(norm, width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = make_norm(norm, out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C', H / stride, W / stride)."""
        return self.pre_activation(x).relu()

    def pre_activation(self, x: Tensor) -> Tensor:
        """Computes the block's output before its last ReLU.

        Args:
            x: (N, C, H, W).

        Returns:
            (N, C', H / stride, W / stride).
        """
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        out = self.bn3(self.conv3(out))
        features: Tensor = out + self.downsample(x)
        return features

    @property
    def last_norm(self) -> nn.Module:
        """Returns the normalisation before the sum."""
        return self.bn3


class ResNet(Backbone):
    """Stem and up to four stages; features ``stem`` and ``res2`` (stride 4) to ``res5`` (stride 32).

    Stages beyond the last feature asked for are not built.
    """

    def __init__(
        self,
        *,
        depth: int,
        in_channels: int = 3,
        stem_channels: int = 64,
        res2_channels: int = 256,
        groups: int = 1,
        width_per_group: int = 64,
        stride_in_1x1: bool = False,
        deform_on_per_stage: Sequence[bool] = (False, False, False, False),
        norm: str = "FrozenStatsBN",
        out_features: Sequence[str] = ("res5",),
        freeze_at: int = 0,
        checkpointing: bool = False,
    ) -> None:
        """Builds a backbone with random weights.

        Args:
            depth: 10 | 18 | 34 | 50 | 101 | 152.
            in_channels: of the images.
            stem_channels: of the stem.
            res2_channels: of res2's output; doubles with every stage.
            groups: of the 3x3 convolutions of bottlenecks.
            width_per_group: of the 3x3 convolutions, for res2_channels = 256.
            stride_in_1x1: stages stride in their first 1x1 convolution, as caffe's models do.
            deform_on_per_stage: res2 to res5: DCNv2 in every 3x3 convolution.
            norm: of :func:`make_norm`; frozen stages always use running statistics.
            out_features: names to return.
            freeze_at: how many stages are frozen, the stem counted as the first.
            checkpointing: recompute blocks in the backward pass.

        Raises:
            ValueError: an unknown depth or feature name, or options that basic blocks lack.
        """
        super().__init__()
        basic = depth in BASIC_DEPTHS
        _check(depth, out_features, deform_on_per_stage, groups, basic)
        self.checkpointing = checkpointing
        norms = ["FrozenStatsBN" if norm == "BN" and i < freeze_at else norm for i in range(5)]
        self.conv1 = nn.Conv2d(in_channels, stem_channels, 7, 2, padding=3, bias=False)
        self.bn1 = make_norm(norms[0], stem_channels)
        channels = [stem_channels] + [res2_channels * 2**i for i in range(4)]
        self.num_stages = max(FEATURES.index(name) for name in out_features)
        for i, blocks in enumerate(BLOCKS[depth][: self.num_stages]):
            options: dict[str, Any] = {"norm": norms[i + 1]}
            if not basic:
                options |= {
                    "width": channels[i + 1] // 4 * width_per_group // 64 * groups,
                    "groups": groups,
                    "stride_in_1x1": stride_in_1x1,
                    "deformable": deform_on_per_stage[i],
                }
            block: type[BasicBlock | Bottleneck] = BasicBlock if basic else Bottleneck
            stage = [block(channels[i], channels[i + 1], stride=1 if i == 0 else 2, **options)]
            stage += [block(channels[i + 1], channels[i + 1], stride=1, **options) for _ in range(blocks - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(FEATURES, channels, strict=True))
        self._out_feature_strides = dict(zip(FEATURES, STRIDES, strict=True))
        self._initialize()
        self._freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps (N, 3, H, W) normalised images to features, name -> (N, C_f, H / stride_f, W / stride_f)."""
        features, _ = self._run(x, frozenset())
        return features

    def lacks_pre_activation(self, name: str) -> str:
        """Returns why a feature has no pre-activation; empty where it has.

        Args:
            name: one of :data:`FEATURES`.

        Returns:
            What follows the feature's name in a message.
        """
        if name not in FEATURES[1:] or name not in self._out_features:
            return "ends in no block of a stage, so it has no features before its last ReLU"
        norm = self._stages()[FEATURES.index(name) - 1][-1].last_norm
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            return ""
        return (
            f"ends in {type(norm).__name__}, whose statistics are those of each image; set "
            "MODEL.BACKBONE.NORM to FrozenStatsBN, FrozenBN or BN"
        )

    def forward_with_pre_activation(self, x: Tensor) -> tuple[dict[str, Tensor], dict[str, PreActivation]]:
        """Computes the features, and what they are before their last ReLU.

        Args:
            x: (N, 3, H, W).

        Returns:
            The features by name, and the pre-activations of those of them that have one.
        """
        names = frozenset(name for name in self._out_features if not self.lacks_pre_activation(name))
        return self._run(x, names)

    def _run(
        self, x: Tensor, pre_activations: frozenset[str]
    ) -> tuple[dict[str, Tensor], dict[str, PreActivation]]:
        """Returns the features, and the named ones before their last ReLU."""
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, stride=2, padding=1)
        features, found = {"stem": x}, {}
        for name, stage in zip(FEATURES[1:], self._stages(), strict=False):
            for block in stage:
                if name in pre_activations and block is stage[-1]:
                    assert isinstance(block, BasicBlock | Bottleneck)
                    run, norm = block.pre_activation, block.last_norm
                    before = checkpoint(run, x, use_reentrant=False) if self._recomputes(x) else run(x)
                    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)  # lacks_pre_activation says so
                    found[name] = PreActivation(before, norm.bias.detach(), norm.weight.detach().abs())
                    x = before.relu()
                else:
                    x = checkpoint(block, x, use_reentrant=False) if self._recomputes(x) else block(x)
            features[name] = x
        return {name: features[name] for name in self._out_features}, found

    def _recomputes(self, x: Tensor) -> bool:
        return self.checkpointing and self.training and torch.is_grad_enabled() and x.requires_grad

    def _stages(self) -> list[nn.Sequential]:
        return [getattr(self, f"layer{i + 1}") for i in range(self.num_stages)]

    def _initialize(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.endswith("conv_offset"):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _freeze(self, freeze_at: int) -> None:
        if freeze_at >= 1:
            freeze_parameters(self.conv1)
            freeze_parameters(self.bn1)
        for stage in self._stages()[: max(freeze_at - 1, 0)]:
            freeze_parameters(stage)


@BACKBONE_REGISTRY.register()
def build_bevkd2_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Builds the backbone of ``MODEL.RESNETS``, filled from ``MODEL.BACKBONE.WEIGHTS`` where given."""
    resnets, node = cfg.MODEL.RESNETS, cfg.MODEL.BACKBONE
    backbone = ResNet(
        depth=resnets.DEPTH,
        in_channels=input_shape.channels,
        stem_channels=resnets.STEM_OUT_CHANNELS,
        res2_channels=resnets.RES2_OUT_CHANNELS,
        groups=resnets.NUM_GROUPS,
        width_per_group=resnets.WIDTH_PER_GROUP,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        deform_on_per_stage=resnets.DEFORM_ON_PER_STAGE,
        norm=node.NORM,
        out_features=resnets.OUT_FEATURES,
        freeze_at=node.FREEZE_AT,
        checkpointing=node.CHECKPOINTING,
    )
    if node.WEIGHTS:
        later_stages = tuple(f"layer{i}." for i in range(backbone.num_stages + 1, 5))
        load_backbone_weights(backbone, node.WEIGHTS, unused=later_stages)
    return backbone


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: str) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), make_norm(norm, out_channels)
    )


def _check(depth: int, out_features: Sequence[str], deform: Sequence[bool], groups: int, basic: bool) -> None:
    if depth not in BLOCKS:
        raise ValueError(f"MODEL.RESNETS.DEPTH is {depth}, expected one of {sorted(BLOCKS)}")
    unknown = [name for name in out_features if name not in FEATURES]
    if unknown or not out_features:
        raise ValueError(
            f"MODEL.RESNETS.OUT_FEATURES is {list(out_features)}, expected names among {list(FEATURES)}"
        )
    if basic and (any(deform) or groups != 1):
        raise ValueError(
            f"MODEL.RESNETS: depth {depth} has basic blocks, which take neither DEFORM_ON_PER_STAGE nor "
            "NUM_GROUPS; use depth 50, 101 or 152"
        )
