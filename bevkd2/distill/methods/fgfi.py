"""FGFI: fine-grained imitation near objects (Wang et al., CVPR 2019, arXiv 1906.03609)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.masks import draw_content, draw_masks
from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.feature import FeatureMethod, summed_distance
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.modeling.losses import average_over_ranks


@register_method
class FGFI(FeatureMethod):
    """Computes the squared distance of features where anchors overlap objects (Eq. 1 and 2).

    L = 1 / (2 N) sum over the cells of all maps of I sum over channels of (f(F_s) - F_t)^2. I is 1 at cells
    of which one anchor's IoU with an object's 2D box exceeds THRESHOLD times the largest IoU that any anchor
    of any map has with this object, and N counts these cells in the batch of all processes.

    Deviations: the detectors here have no anchors; every cell of a map gets boxes of ANCHOR_SCALE strides and
    of the ratios that RPNs on feature pyramids have (the paper's single map has three scales). The paper's
    mask has one map; here the largest IoU is that of all maps, so that an object counts where anchors have
    its size. On a BEV grid the mask is the objects' turned boxes. Padding has no mask. The published code
    turns the loss on after a first phase: use WARMUP.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: sources that the two do not share, channels that differ without an adapter, or settings of
            the anchors that cannot be.
    """

    node = "FGFI"
    adapter_default = "conv3x3"
    adapter_std = 1e-4

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.check(
            0 <= cfg.THRESHOLD < 1, "THRESHOLD", f"{cfg.THRESHOLD}; expected a factor from 0 to below 1"
        )
        self.check(cfg.ANCHOR_SCALE > 0, "ANCHOR_SCALE", f"{cfg.ANCHOR_SCALE}; expected strides above 0")
        ratios = [float(ratio) for ratio in cfg.ANCHOR_RATIOS]
        self.check(
            bool(ratios) and min(ratios) > 0,
            "ANCHOR_RATIOS",
            f"{ratios}; expected heights over widths above 0, such as [0.5, 1.0, 2.0]",
        )
        self.threshold, self.scale, self.ratios = float(cfg.THRESHOLD), float(cfg.ANCHOR_SCALE), ratios

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods, with the published weight, and those of the mask."""
        super().add_config(node)
        node.WEIGHT = 0.01  # multiplied by DISTILL.FACTOR
        node.THRESHOLD = 0.5  # psi
        node.ANCHOR_SCALE = 8.0  # root of an anchor's area in strides of its map
        node.ANCHOR_RATIOS = [0.5, 1.0, 2.0]  # heights over widths

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> Tensor:
        """Returns the loss."""
        masks = self.masks(pairs, student, targets)
        count = torch.stack([mask.sum(dtype=torch.float32) for mask in masks]).sum()
        scale = 1 / (2 * average_over_ranks(count, count.device))
        theirs = [pair.teacher for pair in pairs]
        return summed_distance(self.adapted(pairs), theirs, [scale] * len(pairs), masks)

    def masks(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> list[Tensor]:
        """Draws I of every map.

        Args:
            pairs: of :meth:`pairs`, one of each source.
            student: the student's knowledge, which says what is padding.
            targets: the student's, with the boxes of the objects.

        Returns:
            (R, h, w) float32 of each pair: 1 where the features are compared, 0 elsewhere. On a BEV
            grid the objects' turned boxes; on images the cells whose anchors overlap objects,
            outside the padding.
        """
        shapes = [pair.shape for pair in pairs]
        in_images = [i for i, source in enumerate(self.sources) if source.stride is not None]
        grids = [i for i, source in enumerate(self.sources) if source.stride is None]
        masks: dict[int, Tensor] = {}
        if grids:
            drawn = draw_masks(
                [self.sources[i] for i in grids], [shapes[i] for i in grids], student, targets, "foreground"
            )
            masks |= zip(grids, drawn, strict=True)
        if in_images:
            strides = [stride for i in in_images if (stride := self.sources[i].stride) is not None]
            overlapped = self._overlapped([shapes[i] for i in in_images], strides, targets.image_boxes())
            content = draw_content(self.sources, shapes, student)
            for i, mask in zip(in_images, overlapped, strict=True):
                inside = content[i]
                assert inside is not None
                masks[i] = mask * inside
        return [masks[i] for i in range(len(pairs))]

    def _overlapped(
        self, shapes: Sequence[tuple[int, int]], strides: Sequence[int], boxes: Sequence[Tensor]
    ) -> list[Tensor]:
        """Returns 1 at cells with an anchor that overlaps an object enough, (R, h, w) of every map."""
        packed = torch.cat(list(boxes)).float()
        rows = torch.repeat_interleave(
            torch.tensor([len(part) for part in boxes]), output_size=len(packed)
        ).to(packed.device, non_blocking=True)
        overlaps = [
            self._best_overlap(packed, shape, stride) for shape, stride in zip(shapes, strides, strict=True)
        ]
        if not len(packed):
            return [packed.new_zeros(len(boxes), *shape) for shape in shapes]
        largest = torch.stack([overlap.amax(dim=(1, 2)) for overlap in overlaps]).amax(dim=0)
        masks = []
        for overlap in overlaps:
            counted = (overlap > self.threshold * largest[:, None, None]).float()
            mask = packed.new_zeros(len(boxes), *overlap.shape[1:]).index_add(0, rows, counted)
            masks.append(mask.clamp(max=1))
        return masks

    def _best_overlap(self, boxes: Tensor, shape: tuple[int, int], stride: int) -> Tensor:
        """Returns (N, h, w): the largest IoU of each box with the anchors at each cell."""
        y, x = ((torch.arange(n, device=boxes.device) + 0.5) * stride for n in shape)
        best = boxes.new_zeros(len(boxes), *shape)
        x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
        for ratio in self.ratios:
            width = self.scale * stride / ratio**0.5
            height = self.scale * stride * ratio**0.5
            overlap_x = (x2.minimum(x + width / 2) - x1.maximum(x - width / 2)).clamp(min=0)
            overlap_y = (y2.minimum(y + height / 2) - y1.maximum(y - height / 2)).clamp(min=0)
            shared = overlap_y[:, :, None] * overlap_x[:, None, :]
            areas = ((x2 - x1) * (y2 - y1))[:, :, None] + width * height
            best = best.maximum(shared / (areas - shared))
        return best
