"""FCOS3D and PGD as modules from tensors to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bevkd2.modeling.deployable import Port
from bevkd2.modeling.mono.deployable import BOX_COLUMNS, DeployableMono
from bevkd2.modeling.mono.fcos3d.decode import best_locations
from bevkd2.modeling.mono.grid import DenseGrid

if TYPE_CHECKING:
    from bevkd2.modeling.mono.fcos3d.fcos3d import FCOS3D


class DeployableDense(DeployableMono):
    """FCOS3D and PGD: candidates of every level; thresholds and suppression are the runtime's."""

    def __init__(self, detector: FCOS3D, image_size: tuple[int, int]) -> None:
        """Names the outputs, those that the head has; arguments as the base."""
        super().__init__(detector, image_size)
        head, count = detector.head.options, detector.decoding.candidates_per_level
        grid = DenseGrid.of_image(self.image_size, detector.neck.strides, "meta")
        found = sum(min(rows * columns, count) for rows, columns in grid.shapes)
        boxes = f"{BOX_COLUMNS}, vx, vz (m/s)" if head.velocity else BOX_COLUMNS
        outputs = [
            Port("boxes", (found, 9 if head.velocity else 7), torch.float32, boxes),
            Port("scores", (found, detector.num_classes), torch.float32, "of every class; may exceed 1"),
        ]
        if head.boxes2d:
            outputs.append(Port("boxes2d", (found, 4), torch.float32, "x1, y1, x2, y2 in pixels of images"))
        if head.num_attributes:
            outputs.append(Port("attributes", (found,), torch.int64, "index into nuScenes' attributes"))
        self.outputs: Sequence[Port] = tuple(outputs)

    def forward(self, images: Tensor, image_sizes: Tensor, cam2img: Tensor) -> tuple[Tensor, ...]:
        """Runs the images; see ``inputs`` and ``outputs``."""
        inputs = self.prepare(images, image_sizes, cam2img)
        knowledge = self.detector.extract(inputs)
        best = best_locations(
            knowledge.outputs,
            knowledge.filled("depth"),
            cam2img=cam2img,
            image_sizes=image_sizes,
            grid=inputs.grid,
            options=self.detector.decoding,
        )
        found = (best.boxes, best.scores, best.boxes2d, best.attributes)
        return tuple(tensor for tensor in found if tensor is not None)

    def description(self) -> dict[str, Any]:
        """Returns what the runtime needs for its suppression as well."""
        decoding = self.detector.decoding
        return {
            **super().description(),
            "score_threshold": decoding.score_threshold,
            "max_detections": decoding.max_detections,
            "nms_threshold": decoding.nms_threshold,
            "nms_inclusive": decoding.nms_inclusive,
        }
