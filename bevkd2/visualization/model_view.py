"""What a BEV detector knows of a frame, ready to be drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bevkd2.modeling.bev.bevformer import BEVFormer
from bevkd2.modeling.bev.projection import pillar_points, project_pillars
from bevkd2.modeling.knowledge import BEVKnowledge, TemporalState
from bevkd2.visualization.attention import (
    attention_entropy,
    draw_cell_attention,
    record_sampling_offsets,
    sampling_pixels,
)
from bevkd2.visualization.bev_response import bev_response
from bevkd2.visualization.objects import Array, DrawnObjects, Image


@dataclasses.dataclass(frozen=True, eq=False)
class ModelView:
    """A model's view of one frame; N cameras, Q = H*W cells, Z pillar points, M heads, L levels, P points.

    Attributes:
        detections: all of them, whatever their score.
        response: (H, W) BEV response.
        entropy: (H, W) nats, of the last encoder layer's spatial attention; NaN where no camera looks.
        extent: x0, y0, x1, y1 of the grid in metres.
        seen: (N, Q) whether a camera sees a cell.
        reference_points: (N, Q, Z, 2) pillar points as fractions of the padded image.
        offsets: (Q, M, L, P, 2) in cells of each level.
        weights: (Q, M, L, P) attention weights.
        spatial_shapes: (h, w) of every level.
        padded_size: height and width in pixels.
    """

    detections: DrawnObjects
    response: Array
    entropy: Array
    extent: tuple[float, float, float, float]
    seen: npt.NDArray[np.bool_]
    reference_points: Array
    offsets: Array
    weights: Array
    spatial_shapes: list[tuple[int, int]]
    padded_size: tuple[int, int]

    def cell_at(self, x: float, y: float) -> int | None:
        """The cell of a place in metres; None outside the grid."""
        x0, y0, x1, y1 = self.extent
        if not (x0 <= x < x1 and y0 <= y < y1):
            return None
        height, width = self.response.shape
        return int((y - y0) / (y1 - y0) * height) * width + int((x - x0) / (x1 - x0) * width)

    def draw_attention(self, cell: int, images: Mapping[str, Image], scale: float = 1.0) -> Image:
        """Draw where a cell looks in the cameras.

        Args:
            cell: index of the cell.
            images: camera name -> (H, W, 3) RGB, in the order of the model's cameras.
            scale: images are resized by it.

        Returns:
            The mosaic of the cameras.
        """
        pixels = sampling_pixels(
            self.reference_points[:, cell], self.offsets[cell], self.spatial_shapes, self.padded_size
        )
        return draw_cell_attention(images, pixels, self.weights[cell], self.seen[:, cell], scale)


class ModelStream:
    """Shows a model the frames of scenes, in order, and keeps its memory between them."""

    def __init__(self, model: BEVFormer) -> None:
        """Set the model to evaluation.

        Args:
            model: with its weights loaded.
        """
        self._model = model.eval()
        self._state: TemporalState | None = None

    @torch.no_grad()
    def see(self, sample: Mapping[str, Any]) -> ModelView:
        """Run one frame.

        Args:
            sample: of the test mapper; a frame of another scene than the last begins anew.

        Returns:
            The view of it.
        """
        model = self._model
        inputs = model.preprocess([sample])
        with record_sampling_offsets(model) as offsets:
            knowledge = model.extract(inputs, frozenset({"fpn", "spatial_attention"}), self._state)
        self._state = knowledge.state
        geometry, frames = model.geometry, inputs.current
        points = pillar_points(
            geometry.bev_shape, geometry.pc_range, geometry.num_pillar_points, frames.lidar2img.device
        )
        references, _ = project_pillars(points, frames.lidar2img, frames.image_sizes, frames.padded_size)
        return _view(
            knowledge,
            DrawnObjects.from_dict(model.inference(knowledge, inputs)[0]),
            geometry.pc_range,
            _to_numpy(references[0]),
            _to_numpy(offsets[-1][0]),
            frames.padded_size,
        )


def _view(
    knowledge: BEVKnowledge,
    detections: DrawnObjects,
    pc_range: Sequence[float],
    reference_points: Array,
    offsets: Array,
    padded_size: tuple[int, int],
) -> ModelView:
    assert knowledge.bev_embed is not None and knowledge.bev_mask is not None
    assert knowledge.bev_shape is not None and knowledge.fpn is not None
    assert knowledge.spatial_attention is not None
    weights = _to_numpy(knowledge.spatial_attention[-1][0])
    seen = knowledge.bev_mask[0].cpu().numpy()
    entropy = np.where(seen.any(axis=0), attention_entropy(weights), np.nan)
    return ModelView(
        detections=detections,
        response=bev_response(_to_numpy(knowledge.bev_embed[0]), knowledge.bev_shape),
        entropy=entropy.reshape(knowledge.bev_shape),
        extent=(float(pc_range[0]), float(pc_range[1]), float(pc_range[3]), float(pc_range[4])),
        seen=seen,
        reference_points=reference_points,
        offsets=offsets,
        weights=weights,
        spatial_shapes=[(level.shape[-2], level.shape[-1]) for level in knowledge.fpn],
        padded_size=padded_size,
    )


def _to_numpy(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().cpu().numpy()
