"""The head of FCOS3D (arXiv 2104.10956) and PGD (arXiv 2107.14160): two towers and their branches."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bevkd2.modeling.backbones.deform_conv import DeformConv2d
from bevkd2.modeling.backbones.norms import make_norm
from bevkd2.modeling.mono.fcos3d.box_prior import BoxPrior
from bevkd2.modeling.mono.fcos3d.outputs import DenseOutputs

# Deviation of the initial weights, and the probability that the initial biases of classifiers stand for.
_WEIGHT_STD = 0.01
_PRIOR_PROBABILITY = 0.01
_INITIAL_FUSE_LAMBDA = 1e-4


@dataclasses.dataclass(frozen=True)
class DenseHeadOptions:
    """What a head predicts beside classes, boxes, directions and centre-ness."""

    num_attributes: int = 0
    """nuScenes: 9."""
    velocity: bool = False
    depth_bins: int = 0
    """PGD: how many depths the distribution knows."""
    uncertainty: bool = False
    """PGD on KITTI: the log scale of the depth."""
    keypoints: bool = False
    """PGD on KITTI: the eight projected corners."""
    boxes2d: bool = False
    """PGD: distances to the sides of the 2D box."""

    def regressors(self) -> dict[str, int]:
        """Numbers that each regressor puts out, in the order of the published layout."""
        channels = {"offset": 2, "depth": 1, "size": 3, "rotation": 1}
        optional = {"velocity": 2, "keypoints": 16, "boxes2d": 4}
        return channels | {name: count for name, count in optional.items() if getattr(self, name)}

    def extras(self) -> dict[str, int]:
        """Numbers that each optional branch puts out beside the regressors."""
        optional = {
            "attributes": self.num_attributes,
            "depth_bins": self.depth_bins,
            "uncertainty": int(self.uncertainty),
        }
        return {name: count for name, count in optional.items() if count}


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
        """(B, C, h, w) -> (B, C', h, w)."""
        return self.norm(self.conv(x)).relu()


class Branch(nn.Module):
    """Convolutions of one branch and the 1x1 that puts out its numbers, in float32 at least."""

    def __init__(self, in_channels: int, widths: Sequence[int], out_channels: int, bias: float = 0.0) -> None:
        super().__init__()
        channels = [in_channels, *widths]
        self.convs = nn.Sequential(
            *(ConvGroupNorm(before, after) for before, after in itertools.pairwise(channels))
        )
        self.out = nn.Conv2d(channels[-1], out_channels, 1)
        _initialize(self.out, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, numbers, h, w)."""
        out = self.out(self.convs(x))
        return out if out.dtype == torch.float64 else out.float()


class DenseHead(nn.Module):
    """Predicts a box at every cell of every level; all levels share everything but scalar factors.

    Attributes:
        fuse_lambda: scalar whose sigmoid weighs the direct depth against the distribution's; None without
            a distribution.
    """

    fuse_lambda: nn.Parameter | None

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        num_levels: int,
        feature_channels: int,
        stacked_convs: int,
        deformable_last: bool,
        widths: Mapping[str, Sequence[int]],
        prior: BoxPrior,
        options: DenseHeadOptions,
    ) -> None:
        """Build towers and branches.

        Args:
            in_channels: of every level.
            num_classes: K.
            num_levels: levels that will be given.
            feature_channels: of the towers.
            stacked_convs: convolutions of each tower, one at least.
            deformable_last: the last of them is DCNv2.
            widths: channels of every branch's own convolutions, by branch: "class", "direction",
                "centerness" and the names of ``options.regressors()`` and ``options.extras()``.
            prior: of depths and sizes.
            options: which optional branches there are.

        Raises:
            ValueError: no convolution in the towers.
        """
        super().__init__()
        if stacked_convs < 1:
            raise ValueError(f"MODEL.FCOS3D.STACKED_CONVS is {stacked_convs}, expected 1 at least")
        self.options, self.prior = options, prior
        self.class_tower = _tower(in_channels, feature_channels, stacked_convs, deformable_last)
        self.box_tower = _tower(in_channels, feature_channels, stacked_convs, deformable_last)

        rare = -math.log((1 - _PRIOR_PROBABILITY) / _PRIOR_PROBABILITY)

        def branch(name: str, channels: int, bias: float = 0.0) -> Branch:
            return Branch(feature_channels, widths[name], channels, bias)

        self.class_branch = branch("class", num_classes, rare)
        self.direction_branch = branch("direction", 2, rare)
        self.centerness_branch = branch("centerness", 1)
        regressors = options.regressors()
        self.regressors = nn.ModuleDict({name: branch(name, count) for name, count in regressors.items()})
        extra = options.extras()
        self.extra_branches = nn.ModuleDict(
            {name: branch(name, n, 0.0 if name == "uncertainty" else rare) for name, n in extra.items()}
        )
        scaled = [name for name in regressors if name not in ("rotation", "velocity")]
        self.scales = nn.ModuleList(
            nn.ParameterDict({name: nn.Parameter(torch.ones(())) for name in scaled})
            for _ in range(num_levels)
        )
        fuse = nn.Parameter(torch.tensor(_INITIAL_FUSE_LAMBDA)) if options.depth_bins else None
        self.register_parameter("fuse_lambda", fuse)

    def forward(self, levels: Sequence[Tensor]) -> DenseOutputs:
        """Runs the head.

        Args:
            levels: (B, C, h, w) each, finest first.

        Returns:
            The maps, boxes in metres.
        """
        factors = [dict(scales.named_parameters()) for scales in self.scales]
        maps = [self._level(x, level) for x, level in zip(levels, factors, strict=True)]
        return DenseOutputs(**{name: [level[name] for level in maps] for name in maps[0]})

    def _level(self, x: Tensor, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        class_features, box_features = self.class_tower(x), self.box_tower(x)
        logits = self.class_branch(class_features)
        numbers = {name: branch(box_features) for name, branch in self.regressors.items()}
        numbers |= {name: numbers[name] * factor for name, factor in factors.items()}
        depth, size = self.prior(numbers["depth"], numbers["size"], logits)
        parts = [numbers["offset"], depth, size, numbers["rotation"]]
        if "velocity" in numbers:
            parts.append(numbers["velocity"])
        maps = {
            "logits": logits,
            "boxes": torch.cat(parts, dim=1),
            "direction": self.direction_branch(box_features),
            "centerness": self.centerness_branch(box_features),
        }
        if "keypoints" in numbers:
            maps["keypoints"] = numbers["keypoints"].tanh()
        if "boxes2d" in numbers:
            maps["boxes2d"] = numbers["boxes2d"].relu()
        for name, branch in self.extra_branches.items():
            maps[name] = branch(class_features if name == "attributes" else box_features)
        return maps


def _tower(in_channels: int, channels: int, convs: int, deformable_last: bool) -> nn.Sequential:
    return nn.Sequential(
        *(
            ConvGroupNorm(
                channels if i else in_channels, channels, deformable=deformable_last and i == convs - 1
            )
            for i in range(convs)
        )
    )


def _initialize(conv: nn.Conv2d, bias: float = 0.0) -> None:
    nn.init.normal_(conv.weight, std=_WEIGHT_STD)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, bias)
