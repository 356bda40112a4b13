"""TinyBEV: a multi-view detector that averages image features over the points of each BEV cell's pillar.

No attention and no history: every cell of a bird's-eye-view grid reads the features of the pixels that its
pillar projects to, two convolutions mix the cells, and every cell predicts class scores and a box.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevkd2.config import CfgNode, add_config_extension, class_names
from bevkd2.d2 import META_ARCH_REGISTRY, configurable
from bevkd2.modeling import (
    BEVInputs,
    BEVKnowledge,
    BEVTargets,
    Frames,
    HeatmapHead,
    MultiViewDetector,
    average_over_ranks,
    detector_arguments,
    draw_heatmap,
    gaussian_radius,
    heatmap_loss,
    pillar_points,
    project_pillars,
)
from bevkd2.structures import Boxes3D, wrap_angle


@add_config_extension
def add_tinybev_config(cfg: CfgNode) -> None:
    """Adds the detector's own keys; backbone, pyramid (of one level) and pixels have bevkd2's."""
    cfg.MODEL.TINYBEV = CfgNode({"BEV_SHAPE": [32, 32], "PILLAR_POINTS": 4, "MAX_DETECTIONS": 50})


@META_ARCH_REGISTRY.register()
class TinyBEV(MultiViewDetector):
    """Codes of a cell: x, y to the centre (cells), z (m), log sizes, sin, cos of the yaw, vx, vy (m/s)."""

    @configurable
    def __init__(
        self,
        *,
        bev_shape: tuple[int, int],
        point_range: list[float],
        pillar_points: int,
        max_detections: int,
        **shared: Any,
    ) -> None:
        """Makes the layers.

        Args:
            bev_shape: rows (y) and columns (x) of the grid.
            point_range: x0, y0, z0, x1, y1, z1 of the grid in metres, LIDAR_TOP frame.
            pillar_points: points per cell, spread over the height.
            max_detections: most detections per sample.
            **shared: of MultiViewDetector.
        """
        super().__init__(**shared)
        self.bev_shape, self.point_range, self.pillar_points = bev_shape, point_range, pillar_points
        self.max_detections = max_detections
        channels = self.neck.out_channels
        self.bev_encoder = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
        )
        self.class_head = HeatmapHead(channels, self.num_classes)
        self.box_head = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, 10, 1)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        node = cfg.MODEL.TINYBEV
        return {
            **detector_arguments(cfg),
            "num_cameras": len(cfg.INPUT.CAMERAS),
            "num_classes": len(class_names(cfg, single_images=False)),
            "point_range": list(cfg.INPUT.POINT_RANGE),
            "bev_shape": tuple(node.BEV_SHAPE),
            "pillar_points": node.PILLAR_POINTS,
            "max_detections": node.MAX_DETECTIONS,
        }

    def extract(
        self, inputs: BEVInputs, wants: frozenset[str] = frozenset(), state: Any = None
    ) -> BEVKnowledge:
        """Predicts class logits and codes of all cells."""
        levels, knowledge = self.features(inputs.current, wants)
        bev, mask, references = self._to_bev(levels[0], inputs.current)
        bev = self.bev_encoder(bev)
        x0, y0, _, x1, y1, _ = self.point_range
        knowledge.bev_shape, knowledge.bev_range = self.bev_shape, (x0, y0, x1, y1)
        knowledge.bev_embed, knowledge.bev_mask = bev.flatten(2).transpose(1, 2), mask
        knowledge.reference_points = references if "reference_points" in wants else None
        knowledge.bev_heatmap = self.class_head(bev)
        knowledge.logits = knowledge.bev_heatmap.flatten(2).transpose(1, 2)
        knowledge.box_codes = self.box_head(bev).flatten(2).transpose(1, 2)[None].float()
        return knowledge

    def losses(self, knowledge: BEVKnowledge, targets: BEVTargets) -> dict[str, Tensor]:
        """Returns a focal loss of the heat map, and the L1 distance of the codes at objects' centres."""
        heatmap, codes = knowledge.filled("bev_heatmap"), knowledge.filled("box_codes")[0]
        maps, count = [], 0
        distance = codes.sum() * 0  # keeps the graph where no sample has an object
        for i, (boxes, labels) in enumerate(zip(targets.boxes, targets.labels, strict=True)):
            place, inside = self._places(boxes)
            place, boxes, labels = place[inside], boxes[inside], labels[inside]
            length, width = (boxes.size[:, :2] / self._cell_size(boxes.tensor).mean()).unbind(1)
            radii = gaussian_radius(length, width, 0.1)
            maps.append(draw_heatmap(place, radii, labels, self.num_classes, self.bev_shape))
            column, row = place.long().unbind(1)
            error = codes[i, row * self.bev_shape[1] + column] - self._codes(boxes, place)
            distance, count = distance + error.abs().mean(1).sum(), count + len(boxes)
        loss_box = distance / average_over_ranks(count, codes.device)
        return {"loss_heatmap": heatmap_loss(heatmap, torch.stack(maps), count), "loss_box": loss_box}

    def inference(self, knowledge: BEVKnowledge, inputs: BEVInputs) -> list[dict[str, Any]]:
        """Returns the highest peaks of the heat map."""
        heatmap, codes = knowledge.filled("bev_heatmap").sigmoid(), knowledge.filled("box_codes")[0]
        peaks = heatmap.where(heatmap == F.max_pool2d(heatmap, 3, 1, 1), 0).flatten(1)
        scores, index = peaks.topk(min(self.max_detections, peaks.shape[1]))
        cells = index % (self.bev_shape[0] * self.bev_shape[1])
        labels = torch.div(index, self.bev_shape[0] * self.bev_shape[1], rounding_mode="floor")
        return [
            {"boxes": self._boxes(codes[i, cells[i]], cells[i]), "scores": scores[i], "labels": labels[i]}
            for i in inputs.current.rows
        ]

    def _to_bev(self, features: Tensor, frames: Frames) -> tuple[Tensor, Tensor, Tensor]:
        """Averages features over the visible points of every pillar.

        Args:
            features: (B, N, C, h, w).
            frames: their geometry.

        Returns:
            The grid (B, C, H, W), which camera sees which cell (B, N, H*W), and the points (B, N, H*W, Z, 2).
        """
        points = pillar_points(self.bev_shape, self.point_range, self.pillar_points, features.device)
        references, visible = project_pillars(
            points, frames.lidar2img, frames.image_sizes, frames.padded_size
        )
        places = references.where(visible[..., None], 2.0) * 2 - 1  # invisible points lie outside the image
        sampled = F.grid_sample(
            features.flatten(0, 1), places.flatten(0, 1).to(features), align_corners=False
        )
        sampled = sampled.unflatten(0, features.shape[:2])  # (B, N, C, H*W, Z)
        count = visible.sum((1, 3)).clamp(min=1)[:, None]
        mean = sampled.sum((1, 4)) / count
        return mean.unflatten(2, self.bev_shape), visible.any(-1), references

    def _cell_size(self, like: Tensor) -> Tensor:
        """Returns width (x) and height (y) of a cell in metres."""
        x0, y0, _, x1, y1, _ = self.point_range
        rows, columns = self.bev_shape
        return like.new_tensor([(x1 - x0) / columns, (y1 - y0) / rows])

    def _places(self, boxes: Boxes3D) -> tuple[Tensor, Tensor]:
        """Returns (n, 2) x, y of the centres in cells, and whether they are on the grid."""
        low = boxes.tensor.new_tensor(self.point_range[:2])
        place = (boxes.center[:, :2] - low) / self._cell_size(boxes.tensor)
        limits = place.new_tensor([self.bev_shape[1], self.bev_shape[0]])
        return place, ((place >= 0) & (place < limits)).all(1)

    def _codes(self, boxes: Boxes3D, place: Tensor) -> Tensor:
        offset, yaw = place - place.floor() - 0.5, boxes.yaw[:, None]
        return torch.cat(
            [offset, boxes.center[:, 2:], boxes.size.log(), yaw.sin(), yaw.cos(), boxes.velocity], 1
        )

    def _boxes(self, codes: Tensor, cells: Tensor) -> Boxes3D:
        columns = self.bev_shape[1]
        place = torch.stack([cells % columns, torch.div(cells, columns, rounding_mode="floor")], 1)
        centers = (place + 0.5 + codes[:, :2]) * self._cell_size(codes) + codes.new_tensor(
            self.point_range[:2]
        )
        yaw = wrap_angle(torch.atan2(codes[:, 6], codes[:, 7]))[:, None]
        return Boxes3D(torch.cat([centers, codes[:, 2:3], codes[:, 3:6].exp(), yaw, codes[:, 8:]], 1))
