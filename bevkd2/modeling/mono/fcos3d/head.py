"""The head of FCOS3D (arXiv 2104.10956) and PGD (arXiv 2107.14160): two towers and their branches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bevkd2.modeling.mono.fcos3d.priors import BoxPrior
from bevkd2.modeling.mono.grid import flatten_levels
from bevkd2.modeling.mono.head import Branch, ConvGroupNorm, TowerFeatures, run_towers

# The probability that the initial biases of classifiers predict.
_PRIOR_PROBABILITY = 0.01
_INITIAL_FUSE_LAMBDA = 1e-4


@dataclasses.dataclass(frozen=True)
class TowerShape:
    """The stack of convolutions that branches read."""

    in_channels: int
    """Channels of every level."""
    channels: int
    """Channels of every convolution."""
    convs: int
    """How many there are, one at least."""
    deformable_last: bool
    """Whether the last of them is DCNv2."""

    def __post_init__(self) -> None:
        if self.convs < 1:
            raise ValueError(f"MODEL.FCOS3D.STACKED_CONVS is {self.convs}, expected 1 at least")

    def build(self) -> nn.Sequential:
        """Builds a tower."""
        inputs = [self.in_channels, *[self.channels] * (self.convs - 1)]
        deformable = [False] * (self.convs - 1) + [self.deformable_last]
        return nn.Sequential(*map(ConvGroupNorm, inputs, [self.channels] * self.convs, deformable))


@dataclasses.dataclass(frozen=True)
class DenseHeadOptions:
    """Predictions of a head besides classes, boxes, directions and centre-ness."""

    num_attributes: int = 0
    """nuScenes: 9."""
    velocity: bool = False
    depth_bins: int = 0
    """PGD: number of bins of the depth distribution."""
    uncertainty: bool = False
    """PGD on KITTI: the log scale of the depth."""
    keypoints: bool = False
    """PGD on KITTI: the eight projected corners."""
    boxes2d: bool = False
    """PGD: distances to the sides of the 2D box."""

    def regressors(self) -> dict[str, int]:
        """Returns the output channels of each regression branch, in the order of the published layout."""
        channels = {"offset": 2, "depth": 1, "size": 3, "rotation": 1}
        optional = {"velocity": 2, "keypoints": 16, "boxes2d": 4}
        return channels | {name: count for name, count in optional.items() if getattr(self, name)}

    def extras(self) -> dict[str, int]:
        """Returns the output channels of each optional branch beside the regressors."""
        optional = {
            "attributes": self.num_attributes,
            "depth_bins": self.depth_bins,
            "uncertainty": int(self.uncertainty),
        }
        return {name: count for name, count in optional.items() if count}


@dataclasses.dataclass
class DenseOutputs:
    """Lists with one map per level, finest first; B images, h x w cells, K classes.

    The location of a cell (x, y) of a level with stride s is the pixel (x * s + s // 2, y * s + s // 2).
    Distances in the image plane are in strides of the level.
    """

    logits: list[Tensor]
    """(B, K, h, w) before the sigmoid."""
    boxes: list[Tensor]
    """(B, 7 or 9, h, w): dx, dy (location minus projected centre), direct depth (m), length, height, width
    (m: the published order), local yaw (rad, modulo pi: ``direction`` is the bin), then vx, vz
    (m/s)."""
    direction: list[Tensor]
    """(B, 2, h, w) logits of the direction bin (half turn) that the yaw lies in."""
    centerness: list[Tensor]
    """(B, 1, h, w) logits."""
    depth_bins: list[Tensor] | None = None
    """(B, bins, h, w) logits of the depth distribution (PGD)."""
    uncertainty: list[Tensor] | None = None
    """(B, 1, h, w) log of the depth's scale (PGD on KITTI)."""
    keypoints: list[Tensor] | None = None
    """(B, 16, h, w) x, y of the eight projected corners minus the location, squashed by tanh: 1 is the finest
    level's longest distance, scaled with the stride (PGD on KITTI)."""
    boxes2d: list[Tensor] | None = None
    """(B, 4, h, w) distances to left, top, right, bottom of the 2D box, not negative (PGD)."""
    attributes: list[Tensor] | None = None
    """(B, 9, h, w) logits (nuScenes)."""

    def __post_init__(self) -> None:
        self._flat: dict[str, tuple[list[Tensor], Tensor]] = {}

    def flat(self, name: str) -> Tensor:
        """Returns the maps of a field as (B, Q, C), in the order of :class:`DenseGrid`.

        A list of maps is flattened once.

        Args:
            name: of the field.

        Raises:
            ValueError: the head has no such maps.
        """
        maps = getattr(self, name)
        if maps is None:
            raise ValueError(f"DenseOutputs.{name} is None: the head has no branch for it")
        if name not in self._flat or self._flat[name][0] is not maps:
            self._flat[name] = maps, flatten_levels(maps)
        return self._flat[name][1]


@dataclasses.dataclass
class DepthOutputs:
    """The maps of :class:`DenseOutputs` that say which class there is and how far; one per level."""

    logits: list[Tensor]
    """(B, K, h, w) before the sigmoid."""
    depth: list[Tensor] | None
    """(B, 1, h, w) metres: the direct depth."""
    depth_bins: list[Tensor] | None
    """(B, bins, h, w) logits of the depth distribution (PGD)."""


class DenseHead(nn.Module):
    """Predicts a box at every cell of every level; all levels share everything but scalar factors.

    Attributes:
        fuse_lambda: scalar whose sigmoid weighs the direct depth against the distribution's; None without
            a distribution.
    """

    fuse_lambda: nn.Parameter | None

    def __init__(
        self,
        tower: TowerShape,
        *,
        num_classes: int,
        num_levels: int,
        widths: Mapping[str, Sequence[int]],
        prior: BoxPrior,
        options: DenseHeadOptions,
    ) -> None:
        """Builds towers and branches.

        Args:
            tower: of both towers.
            num_classes: K.
            num_levels: number of levels.
            widths: channels of every branch's own convolutions, by branch: "class", "direction",
                "centerness" and the names of ``options.regressors()`` and ``options.extras()``.
            prior: of depths and sizes.
            options: which optional branches there are.
        """
        super().__init__()
        self.tower, self.options, self.prior = tower, options, prior
        self.class_tower, self.box_tower = tower.build(), tower.build()

        rare = -math.log((1 - _PRIOR_PROBABILITY) / _PRIOR_PROBABILITY)

        def branch(name: str, channels: int, bias: float = 0.0) -> Branch:
            return Branch(tower.channels, widths[name], channels, bias)

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

    def forward(self, levels: Sequence[Tensor], kept: TowerFeatures | None = None) -> DenseOutputs:
        """Runs the head.

        Args:
            levels: (B, C, h, w) each, finest first.
            kept: gets the features of all layers of the towers.

        Returns:
            The maps, boxes in metres.
        """
        return self._predict([self.run_towers(x, kept) for x in levels])

    def run_towers(self, x: Tensor, kept: TowerFeatures | None = None) -> tuple[Tensor, Tensor]:
        """Maps one level to what the branches of classes and of boxes read.

        Args:
            x: (B, C, h, w).
            kept: gets the features of all layers; None: they are not kept.

        Returns:
            (B, C', h, w) of the tower of classes, and of that of boxes.
        """
        return run_towers(self.class_tower, self.box_tower, x, kept)

    def resume(
        self, class_features: Sequence[Tensor], box_features: Sequence[Tensor], layer: int
    ) -> DenseOutputs:
        """Runs the head from the middle of its towers on.

        Args:
            class_features: (B, C, h, w) each, finest first: of the class tower after ``layer`` convolutions,
                before the ReLU.
            box_features: of the box tower.
            layer: 1 at least.
        """
        class_rest, box_rest = self.class_tower[layer:], self.box_tower[layer:]
        return self._predict(
            [
                (class_rest(ours.relu()), box_rest(theirs.relu()))
                for ours, theirs in zip(class_features, box_features, strict=True)
            ]
        )

    def _predict(self, features: Sequence[tuple[Tensor, Tensor]]) -> DenseOutputs:
        factors = [dict(scales.named_parameters()) for scales in self.scales]
        maps = [self._level(*level, factor) for level, factor in zip(features, factors, strict=True)]
        return DenseOutputs(**{name: [level[name] for level in maps] for name in maps[0]})

    def class_and_depth(self, levels: Sequence[Tensor], with_depth: bool = True) -> DepthOutputs:
        """Runs only the branches of classes and depths, and no box tower without depths.

        Args:
            levels: (B, C, h, w) each, finest first.
            with_depth: compute the depths too.
        """
        logits, depths, bins = [], [], []
        for x, scales in zip(levels, self.scales, strict=True):
            logits.append(self.class_branch(self.class_tower(x)))
            if not with_depth:
                continue
            features = self.box_tower(x)
            raw = self.regressors["depth"](features) * scales.get_parameter("depth")
            depths.append(self.prior.metric_depth(raw, logits[-1].argmax(dim=1)))
            if "depth_bins" in self.extra_branches:
                bins.append(self.extra_branches["depth_bins"](features))
        return DepthOutputs(logits, depths or None, bins or None)

    def _level(
        self, class_features: Tensor, box_features: Tensor, factors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
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
