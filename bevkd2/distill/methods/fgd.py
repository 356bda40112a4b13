"""FGD: focal and global imitation of features (Yang et al., CVPR 2022, arXiv 2111.11837)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn

from bevkd2.distill.masks import draw_masks
from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.feature import FeatureMethod, attention_of, summed_distance
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.ops import absolute_means, weighted_l2_with_means
from bevkd2.ops.precision import widen


@register_method
class FGD(FeatureMethod):
    """Computes the focal, the attention and the global loss of FGD (Eq. 6 to 11), summed over the maps.

    focal = 1/R sum over R maps of the batch, channels k and cells i of (alpha M_fg + beta M_bg)_i S_i C_k
    (f(F_s) - F_t)^2, where S = H W softmax(mean over channels of |F_t| / T) and C = C softmax(mean over cells
    of |F_t| / T) are the teacher's attention, M_fg is 1 / (area of the box) in the boxes (the largest where
    they overlap) and M_bg 1 / (number of cells) outside of them. attention = gamma / R sum of |S_s - S_t| and
    |C_s - C_t|. relation = lambda / R sum of (G(f(F_s)) - G(F_t))^2 with one learned context block G for each
    model.

    The weights are those published for FCOS, an anchor-free detector as these are. Deviations: the published
    code scales boxes by the size of the map over that of the image without its padding, which misplaces them
    in padded images, and counts padding as background; here boxes are divided by the stride, and padding is
    in neither mask. As published, it counts in the attention and in the relation. On a BEV grid a cell lies
    in a turned box if its centre does.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: sources that the two do not share, channels that differ without an adapter, or a
            temperature that is not positive.
    """

    node = "FGD"
    adapter_default = "auto"

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.check(
            cfg.TEMPERATURE > 0, "TEMPERATURE", f"{cfg.TEMPERATURE}; expected a positive number, such as 0.8"
        )
        self.temperature = float(cfg.TEMPERATURE)
        self.foreground, self.background = float(cfg.FOREGROUND_WEIGHT), float(cfg.BACKGROUND_WEIGHT)
        self.attention, self.relation = float(cfg.ATTENTION_WEIGHT), float(cfg.RELATION_WEIGHT)
        self.blocks = nn.ModuleList()
        if self.relation:
            self.blocks.extend(
                nn.ModuleDict(
                    {role: ContextBlock(source.teacher_channels) for role in ("student", "teacher")}
                )
                for source in self.sources
            )

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods and the weights of the three losses."""
        super().add_config(node)
        # As published for FCOS; RetinaNet: 0.5, 1e-3, 5e-4, 5e-4, 5e-6;
        # two-stage detectors: 0.5, 5e-5, 2.5e-5, 5e-5, 5e-7
        node.TEMPERATURE = 0.8  # of the attention
        node.FOREGROUND_WEIGHT = 1.6e-3  # alpha
        node.BACKGROUND_WEIGHT = 8e-4  # beta
        node.ATTENTION_WEIGHT = 8e-4  # gamma
        node.RELATION_WEIGHT = 8e-6  # lambda; 0: no relation loss, and no context blocks

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> dict[str, Tensor]:
        """Returns the three losses."""
        ours, theirs = self.adapted(pairs), [pair.teacher for pair in pairs]
        focal, attention = [], []
        masks = self._masks(pairs, student, targets)
        for features, teacher, mask in zip(ours, theirs, masks, strict=True):
            pixels, channels = self._attention(*absolute_means(teacher))
            found = weighted_l2_with_means(
                features,
                teacher,
                pixels.new_full((len(features),), 1 / len(features)),
                weights=mask.to(pixels) * pixels,
                channel_weights=channels,
            )
            focal.append(found.distance)
            pixels_s, channels_s = self._attention(found.pixels, found.channels)
            total = (pixels_s - pixels).abs().sum() + (channels_s - channels).abs().sum()
            attention.append(total / len(features))
        losses = {"fgd_focal": torch.stack(focal).sum()}
        if self.attention:
            losses["fgd_attention"] = self.attention * torch.stack(attention).sum()
        if self.relation:
            losses["fgd_relation"] = self.relation * self._relation_loss(ours, theirs)
        return losses

    def _masks(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> list[Tensor]:
        """Returns alpha M_fg + beta M_bg, (R, h, w) of every map."""
        shapes = [pair.shape for pair in pairs]
        foreground, background = (
            draw_masks(self.sources, shapes, student, targets, kind, normalize=True, rounding="outward")
            for kind in ("foreground", "background")
        )
        return [
            self.foreground * inside + self.background * outside
            for inside, outside in zip(foreground, background, strict=True)
        ]

    def _attention(self, pixels: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the attention of cells (R, h, w) and of channels (R, C) from the absolute means."""
        return attention_of(pixels, self.temperature), attention_of(channels, self.temperature)

    def _relation_loss(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        # Both contexts are added to the student's map: the teacher's has a gradient too, its block's.
        shifted = []
        with torch.autocast(ours[0].device.type, enabled=False):
            for block, student, teacher in zip(self.blocks, ours, theirs, strict=True):
                assert isinstance(block, nn.ModuleDict)
                student, teacher = widen(student), widen(teacher)
                shifted.append(student + block["student"](student) - block["teacher"](teacher))
        return summed_distance(shifted, theirs, [1 / len(features) for features in ours])


class ContextBlock(nn.Module):
    """Computes what a global context block adds to every cell (GCNet, arXiv 1904.11492, as in FGD's Eq. 10).

    Cells are pooled by a learned softmax, and two 1x1 convolutions transform the pooled channels. The last
    one begins at zero.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.mask = nn.Conv2d(channels, 1, 1)
        nn.init.kaiming_normal_(self.mask.weight, mode="fan_in", nonlinearity="relu")
        assert self.mask.bias is not None
        nn.init.zeros_(self.mask.bias)
        last = nn.Conv2d(hidden, channels, 1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.LayerNorm([hidden, 1, 1]), nn.ReLU(), last
        )

    def forward(self, features: Tensor) -> Tensor:
        """Maps (R, C, h, w) to (R, C, 1, 1)."""
        weights = self.mask(features).flatten(2).softmax(dim=2)
        context = features.flatten(2) @ weights.transpose(1, 2)
        added: Tensor = self.transform(context[..., None])
        return added
