"""SMOKE's head: a heat map of projected 3D centres, and a box code in every cell (arXiv 2002.10111, 3.2)."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevkd2.modeling.mono.head import Branch, TowerFeatures, run_towers

CODE_SIZE = 8


@dataclasses.dataclass
class SmokeOutputs:
    """Maps of one level; B images, h x w cells, K classes."""

    logits: Tensor
    """(B, K, h, w) of the heat map, before the sigmoid."""
    codes: Tensor
    """(B, 8, h, w): depth in deviations from the mean depth; x, y of the projected centre from the cell's
    top left corner, in cells; logarithms of length, height, width over the class's typical ones, within
    +-0.5; sine and cosine of the local heading plus a quarter turn, of norm 1."""


class SmokeHead(nn.Module):
    """Two branches, each a 3x3 convolution and a 1x1."""

    def __init__(self, in_channels: int, num_classes: int, feature_channels: int = 256) -> None:
        """Makes the layers.

        Args:
            in_channels: of the neck.
            num_classes: K.
            feature_channels: between the two convolutions of a branch.
        """
        super().__init__()
        self.feature_channels = feature_channels
        # A prior probability of 0.1, as CenterNet.
        self.class_branch = Branch(in_channels, (feature_channels,), num_classes, bias=-2.19)
        self.box_branch = Branch(in_channels, (feature_channels,), CODE_SIZE)

    def forward(self, x: Tensor, kept: TowerFeatures | None = None) -> SmokeOutputs:
        """Maps (B, C, h, w) of the neck to maps of the same size.

        Args:
            x: the neck's level.
            kept: gets the features of the branches' first convolutions.
        """
        return self._predict(*self.run_towers(x, kept))

    def run_towers(self, x: Tensor, kept: TowerFeatures | None = None) -> tuple[Tensor, Tensor]:
        """Maps features to what the last convolutions of the branches read.

        Args:
            x: (B, C, h, w).
            kept: gets the features of all layers; None: they are not kept.

        Returns:
            (B, C', h, w) of the branch of classes, and of that of boxes.
        """
        return run_towers(self.class_branch.convs, self.box_branch.convs, x, kept)

    def resume(self, class_features: Tensor, box_features: Tensor, layer: int) -> SmokeOutputs:
        """Runs the head from the middle of its branches on.

        Args:
            class_features: (B, C, h, w) of the class branch after ``layer`` convolutions, before the ReLU.
            box_features: of the box branch.
            layer: 1 at least.
        """
        class_rest, box_rest = self.class_branch.convs[layer:], self.box_branch.convs[layer:]
        return self._predict(class_rest(class_features.relu()), box_rest(box_features.relu()))

    def _predict(self, class_features: Tensor, box_features: Tensor) -> SmokeOutputs:
        raw = self.box_branch.predict(box_features)
        codes = torch.cat([raw[:, :3], raw[:, 3:6].sigmoid() - 0.5, F.normalize(raw[:, 6:], dim=1)], dim=1)
        return SmokeOutputs(self.class_branch.predict(class_features), codes)
