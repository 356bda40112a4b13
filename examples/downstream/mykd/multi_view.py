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
    MultiViewDetector,
    average_over_ranks,
    detector_arguments,
    pillar_points,
    project_pillars,
)
from bevkd2.structures import Boxes3D


@add_config_extension
def add_cellbev_config(cfg: CfgNode) -> None:
    cfg.MODEL.CELLBEV = CfgNode({"BEV_SHAPE": [32, 32], "MAX_DETECTIONS": 50})


@META_ARCH_REGISTRY.register()
class CellBEV(MultiViewDetector):
    """Every BEV cell averages the image features at four points above it, and predicts scores and a box.

    Codes of a cell: offset from its centre (3, m), log sizes (3), sin and cos of the yaw, vx and vy (m/s).
    """

    @configurable
    def __init__(
        self, *, bev_shape: tuple[int, int], point_range: list[float], max_detections: int, **shared: Any
    ) -> None:
        super().__init__(bev_shape=bev_shape, **shared)
        self.point_range, self.max_detections = point_range, max_detections
        channels = self.neck.out_channels
        self.mix = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(channels, self.num_classes + 10, 1)
        nn.init.constant_(self.head.bias[: self.num_classes], -4)  # most cells are empty

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            **detector_arguments(cfg),  # backbone, neck and pixel normaliser
            "num_cameras": len(cfg.INPUT.CAMERAS),
            "num_classes": len(class_names(cfg, single_images=False)),
            "point_range": list(cfg.INPUT.POINT_RANGE),
            "bev_shape": tuple(cfg.MODEL.CELLBEV.BEV_SHAPE),
            "max_detections": cfg.MODEL.CELLBEV.MAX_DETECTIONS,
        }

    def extract(
        self, inputs: BEVInputs, wants: frozenset[str] = frozenset(), state: Any = None
    ) -> BEVKnowledge:
        frames = inputs.current
        levels, knowledge = self.features(frames, wants)  # each (B, N, C, h, w)
        points = pillar_points(self.bev_shape, self.point_range, 4, levels[0].device)
        references, visible = project_pillars(
            points, frames.lidar2img, frames.image_sizes, frames.padded_size
        )
        places = references.where(visible[..., None], 2.0) * 2 - 1  # 3, outside the image, where not visible
        maps, places = levels[0].flatten(0, 1), places.flatten(0, 1).to(levels[0])
        sampled = F.grid_sample(maps, places, align_corners=False).unflatten(0, levels[0].shape[:2])
        bev = sampled.sum((1, 4)) / visible.sum((1, 3)).clamp(min=1)[:, None]
        bev = self.mix(bev.unflatten(2, self.bev_shape))
        predicted = self.head(bev).flatten(2).mT.float()
        x0, y0, _, x1, y1, _ = self.point_range
        knowledge.bev_embed, knowledge.bev_mask = bev.flatten(2).mT, visible.any(-1)
        knowledge.bev_shape, knowledge.bev_range = self.bev_shape, (x0, y0, x1, y1)
        knowledge.logits = predicted[..., : self.num_classes]
        knowledge.box_codes = predicted[None, ..., self.num_classes :]
        return knowledge

    def losses(self, knowledge: BEVKnowledge, targets: BEVTargets) -> dict[str, Tensor]:
        logits, codes = knowledge.filled("logits"), knowledge.filled("box_codes")[0]
        wanted, distance, count = torch.zeros_like(logits), codes.sum() * 0, 0
        for i, (boxes, labels) in enumerate(zip(targets.boxes, targets.labels, strict=True)):
            cells, inside = self.cells(boxes)
            cells, boxes = cells[inside], boxes[inside]
            wanted[i, cells, labels[inside]] = 1
            offset, yaw = boxes.center - self.centers(cells, boxes.tensor), boxes.yaw[:, None]
            code = torch.cat([offset, boxes.size.log(), yaw.sin(), yaw.cos(), boxes.velocity], 1)
            distance = distance + (codes[i, cells] - code).abs().mean(1).sum()
            count += len(boxes)
        objects = average_over_ranks(count, codes.device)  # at least 1
        loss_class = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        return {"loss_class": loss_class / objects, "loss_box": distance / objects}

    def inference(self, knowledge: BEVKnowledge, inputs: BEVInputs) -> list[dict[str, Any]]:
        scores, index = knowledge.filled("logits").sigmoid().flatten(1).topk(self.max_detections)
        results = []
        for i in inputs.current.rows:
            cells = index[i] // self.num_classes
            code = knowledge.filled("box_codes")[0, i, cells]
            centers = self.centers(cells, code) + code[:, :3]
            yaw = torch.atan2(code[:, 6], code[:, 7])[:, None]
            boxes = Boxes3D(torch.cat([centers, code[:, 3:6].exp(), yaw, code[:, 8:]], 1))
            results.append({"boxes": boxes, "scores": scores[i], "labels": index[i] % self.num_classes})
        return results

    def cells(self, boxes: Boxes3D) -> tuple[Tensor, Tensor]:
        """Returns the cell (row-major) of each centre, and whether it is on the grid."""
        low, high = (boxes.tensor.new_tensor(self.point_range[k : k + 2]) for k in (0, 3))
        share = (boxes.center[:, :2] - low) / (high - low)
        rows, columns = self.bev_shape
        column, row = (share[:, 0] * columns).long(), (share[:, 1] * rows).long()
        return row * columns + column, ((share >= 0) & (share < 1)).all(1)

    def centers(self, cells: Tensor, like: Tensor) -> Tensor:
        """Returns (n, 3) the centres of cells in metres, at height 0."""
        x0, y0, _, x1, y1, _ = self.point_range
        rows, columns = self.bev_shape
        x = x0 + (cells % columns + 0.5) * (x1 - x0) / columns
        y = y0 + (cells // columns + 0.5) * (y1 - y0) / rows
        return torch.stack([x, y, torch.zeros_like(x)], 1).to(like)
