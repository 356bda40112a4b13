"""TinyMono: a monocular detector with one feature map, a heat map of centres and a box per cell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bevkd2.config import CfgNode, add_config_extension, class_names
from bevkd2.d2 import META_ARCH_REGISTRY, configurable
from bevkd2.modeling import (
    HeatmapHead,
    MonoDetector,
    MonoInputs,
    MonoKnowledge,
    MonoTargets,
    assign_locations,
    average_over_ranks,
    detector_arguments,
    draw_heatmap,
    flatten_levels,
    gaussian_radius,
    heatmap_loss,
)
from bevkd2.structures import CameraBoxes3D, unproject_points, wrap_angle


@add_config_extension
def add_tinymono_config(cfg: CfgNode) -> None:
    """Adds the detector's own keys; backbone, pyramid (of one level) and pixels have bevkd2's."""
    cfg.MODEL.TINYMONO = CfgNode({"PIXELS_PER_METRE": 20.0, "MAX_DETECTIONS": 30})


@META_ARCH_REGISTRY.register()
class TinyMono(MonoDetector):
    """Codes of a cell: log depth, x, y to the centre (cells), log length, width, height, local sin, cos."""

    @configurable
    def __init__(self, *, pixels_per_metre: float, max_detections: int, **shared: Any) -> None:
        super().__init__(**shared)
        if len(self.neck.strides) != 1:
            raise ValueError(f"MODEL.FPN.NUM_OUTS makes {len(self.neck.strides)} levels, expected 1")
        (self.stride,), channels = self.neck.strides, self.neck.out_channels
        self.pixels_per_metre, self.max_detections = pixels_per_metre, max_detections
        self.class_head = HeatmapHead(channels, self.num_classes)
        hidden = torch.nn.Conv2d(channels, channels, 3, padding=1)
        self.box_head = torch.nn.Sequential(hidden, torch.nn.ReLU(), torch.nn.Conv2d(channels, 8, 1))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        own = {key.lower(): value for key, value in cfg.MODEL.TINYMONO.items()}
        num_classes = len(class_names(cfg, single_images=True))
        return {**detector_arguments(cfg), **own, "num_classes": num_classes}

    def extract(
        self, inputs: MonoInputs, wants: frozenset[str] = frozenset(), state: Any = None
    ) -> MonoKnowledge:
        """Predicts logits, codes and depths of all cells."""
        (level,), knowledge = self.features(inputs, wants)
        knowledge.logits = flatten_levels([self.class_head(level)])
        knowledge.outputs = codes = flatten_levels([self.box_head(level)]).float()
        typical = inputs.cam2img[:, :1, 0] / self.pixels_per_metre  # (m): a longer lens enlarges
        knowledge.depth = knowledge.direct_depth = typical * codes[..., 0].clamp(-3, 3).exp()
        return knowledge

    def assign(self, targets: MonoTargets) -> Tensor:
        """Returns (B, Q) the object that each cell near a centre has to predict."""
        return assign_locations(targets, [(-1.0, 1e8)])

    def losses(self, knowledge: MonoKnowledge, targets: MonoTargets) -> dict[str, Tensor]:
        """Returns a focal loss of the heat map, and the L1 distance of the assigned cells' codes."""
        shape, images = knowledge.level_shapes[0], range(len(targets.boxes))
        heatmap = torch.stack([self._heatmap(targets, i, shape) for i in images])
        logits = knowledge.filled("logits").transpose(1, 2).unflatten(2, shape)
        wanted = torch.cat([self._codes(targets, i) for i in images])
        error = (knowledge.outputs[targets.assignment() >= 0] - wanted).abs()
        error = error.sum(0) / average_over_ranks(len(wanted), error.device)
        loss_heatmap = heatmap_loss(logits, heatmap, (heatmap == 1).sum())
        return {"loss_heatmap": loss_heatmap, "loss_depth": error[0], "loss_box": error[1:].sum()}

    def inference(self, knowledge: MonoKnowledge, inputs: MonoInputs) -> list[dict[str, Any]]:
        """Returns the highest peaks of the heat map, lifted into the camera's frame."""
        shape, logits, depth = (
            knowledge.level_shapes[0],
            knowledge.filled("logits"),
            knowledge.filled("depth"),
        )
        heatmap = logits.sigmoid().transpose(1, 2).unflatten(2, shape)
        peaks = heatmap.where(heatmap == torch.max_pool2d(heatmap, 3, 1, 1), 0).flatten(2)
        results = []
        for i, (scores, labels) in enumerate(zip(*peaks.max(dim=1), strict=True)):
            inside = (knowledge.locations < inputs.image_sizes[i].flip(0)).all(1)  # not in the padding
            scores, best = (scores * inside).topk(min(self.max_detections, len(scores)))
            codes, locations = knowledge.outputs[i, best], knowledge.locations[best]
            pixels = locations + codes[:, 1:3] * self.stride
            centers = unproject_points(pixels, depth[i, best], inputs.cam2img[i])
            heading = wrap_angle(torch.atan2(*codes[:, 6:].T) + torch.atan2(centers[:, 0], centers[:, 2]))
            boxes = CameraBoxes3D(torch.cat([centers, codes[:, 3:6].exp(), heading[:, None]], 1))
            results.append({"boxes": boxes, "scores": scores, "labels": labels[best]})
        return results

    def _heatmap(self, targets: MonoTargets, i: int, shape: tuple[int, int]) -> Tensor:
        centers, boxes = targets.centers2d[i], targets.boxes2d[i]
        inside = ((centers >= 0) & (centers < targets.image_sizes[i].flip(0))).all(1)
        width, height = ((boxes[inside, 2:] - boxes[inside, :2]) / self.stride).unbind(1)
        radii, cells = gaussian_radius(height, width, 0.7), centers[inside] / self.stride
        return draw_heatmap(cells, radii, targets.labels[i][inside], self.num_classes, shape)

    def _codes(self, targets: MonoTargets, i: int) -> Tensor:
        cells = targets.assignment()[i] >= 0
        objects = targets.assignment()[i][cells]
        boxes, alpha = targets.boxes[i][objects], targets.boxes[i][objects].alpha()[:, None]
        depth = targets.depths[i][objects] * self.pixels_per_metre / targets.cam2img[i, 0, 0]
        offset = (targets.centers2d[i][objects] - targets.grid.locations[cells]) / self.stride
        return torch.cat([depth.log()[:, None], offset, boxes.size.log(), alpha.sin(), alpha.cos()], 1)
