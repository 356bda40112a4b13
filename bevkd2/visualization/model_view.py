"""Knowledge of a multi-view detector about one frame, converted for drawing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bevkd2.modeling import BEVKnowledge, Detector, TemporalState
from bevkd2.visualization.attention import attention_entropy, draw_cell_attention, sampling_pixels
from bevkd2.visualization.bev_response import bev_response
from bevkd2.visualization.feature_view import feature_response
from bevkd2.visualization.image_heat import Levels
from bevkd2.visualization.objects import Array, DrawnObjects, Image
from bevkd2.visualization.temporal_view import TemporalAttentionView

_WANTS = frozenset(
    {
        "fpn",
        "spatial_attention",
        "spatial_offsets",
        "reference_points",
        "temporal_attention",
        "temporal_offsets",
    }
)


@dataclasses.dataclass(frozen=True, eq=False)
class SpatialAttentionView:
    """Spatial attention of the last encoder layer; Q cells, Z pillar points, M heads, L levels, P points.

    Attributes:
        seen: (N, Q) whether a camera sees a cell.
        entropy: (Q,) nats; NaN where no camera sees the cell.
        reference_points: (N, Q, Z, 2) pillar points as fractions of the padded image.
        offsets: (Q, M, L, P, 2) in cells of each level.
        weights: (Q, M, L, P) attention weights.
        spatial_shapes: (h, w) of every level.
        padded_size: height and width in pixels.
    """

    seen: npt.NDArray[np.bool_]
    entropy: Array
    reference_points: Array
    offsets: Array
    weights: Array
    spatial_shapes: list[tuple[int, int]]
    padded_size: tuple[int, int]

    def draw(self, cell: int, images: Mapping[str, Image], scale: float = 1.0) -> Image:
        """Draws the points that a cell samples in the cameras.

        Args:
            cell: index of the cell.
            images: camera name -> (H, W, 3) RGB, in the order of the model's cameras.
            scale: images are resized by this factor.

        Returns:
            The mosaic of the cameras.
        """
        pixels = sampling_pixels(
            self.reference_points[:, cell], self.offsets[cell], self.spatial_shapes, self.padded_size
        )
        return draw_cell_attention(images, pixels, self.weights[cell], self.seen[:, cell], scale)


@dataclasses.dataclass(frozen=True, eq=False)
class ModelView:
    """What a model computed for one frame; fields that its knowledge does not have are None.

    Attributes:
        detections: all detections, of any score.
        extent: x0, y0, x1, y1 of the grid in metres.
        shape: rows and columns of the grid.
        response: (H, W) BEV response.
        attention: spatial attention of the BEV cells.
        temporal: temporal attention of the BEV cells.
        features: of each camera, stride -> (h, w) mean absolute FPN feature, padding included.
    """

    detections: DrawnObjects
    extent: tuple[float, float, float, float]
    shape: tuple[int, int]
    response: Array | None = None
    attention: SpatialAttentionView | None = None
    temporal: TemporalAttentionView | None = None
    features: Sequence[Levels] | None = None

    def cell_at(self, x: float, y: float) -> int | None:
        """Returns the row-major index of the cell at a position; None outside the grid.

        Args:
            x: metres, in [x0, x1) of the extent.
            y: metres, in [y0, y1).
        """
        x0, y0, x1, y1 = self.extent
        if not (x0 <= x < x1 and y0 <= y < y1):
            return None
        height, width = self.shape
        return int((y - y0) / (y1 - y0) * height) * width + int((x - x0) / (x1 - x0) * width)


class ModelStream:
    """Runs a multi-view detector on frames of scenes, in order, and keeps its state between them."""

    def __init__(self, model: Detector[Any, Any, Any]) -> None:
        """Sets the model to eval mode.

        Args:
            model: a detector with loaded weights, whose knowledge is a BEVKnowledge.

        Raises:
            ValueError: the knowledge of the model is not a BEVKnowledge.
        """
        if not issubclass(model.knowledge, BEVKnowledge):
            raise ValueError(
                f"{type(model).__name__} gives a {model.knowledge.__name__}, expected a detector "
                "whose knowledge is a BEVKnowledge"
            )
        self._model = model.eval()
        self._state: TemporalState | None = None

    @torch.no_grad()
    def see(self, sample: Mapping[str, Any]) -> ModelView:
        """Runs one frame.

        Args:
            sample: of the test mapper; the first frame of another scene has no history.

        Returns:
            What the model computed.

        Raises:
            ValueError: the detector did not fill ``bev_shape`` and ``bev_range``.
        """
        model = self._model
        inputs = model.preprocess([sample])
        knowledge: BEVKnowledge = model.extract(inputs, _WANTS, self._state)
        before, self._state = self._state, knowledge.state
        response, shape = None, knowledge.filled("bev_shape")
        if knowledge.bev_embed is not None:
            response = bev_response(_to_numpy(knowledge.bev_embed[0]), shape)
        return ModelView(
            detections=DrawnObjects.from_dict(model.inference(knowledge, inputs)[0]),
            extent=knowledge.filled("bev_range"),
            shape=shape,
            response=response,
            attention=_attention(knowledge, inputs.current.padded_size),
            temporal=_temporal(knowledge, before),
            features=_features(knowledge),
        )


def _attention(knowledge: BEVKnowledge, padded_size: tuple[int, int]) -> SpatialAttentionView | None:
    """Returns None where the detector has no spatial attention."""
    if knowledge.spatial_attention is None:
        return None
    weights = _to_numpy(knowledge.spatial_attention[-1][0])
    seen = knowledge.filled("bev_mask")[0].cpu().numpy()
    return SpatialAttentionView(
        seen=seen,
        entropy=np.where(seen.any(axis=0), attention_entropy(weights), np.nan),
        reference_points=_to_numpy(knowledge.filled("reference_points")[0]),
        offsets=_to_numpy(knowledge.filled("spatial_offsets")[-1][0]),
        weights=weights,
        spatial_shapes=[(level.shape[-2], level.shape[-1]) for level in knowledge.filled("fpn")],
        padded_size=padded_size,
    )


def _temporal(knowledge: BEVKnowledge, before: TemporalState | None) -> TemporalAttentionView | None:
    """Returns None where the detector has no temporal attention."""
    if knowledge.temporal_attention is None:
        return None
    now: TemporalState = knowledge.filled("state")
    return TemporalAttentionView(
        offsets=_to_numpy(knowledge.filled("temporal_offsets")[-1][0]).squeeze(3),
        weights=_to_numpy(knowledge.temporal_attention[-1][0]).squeeze(3),
        has_history=before is not None
        and before.scene_tokens == now.scene_tokens
        and before.timestamps[0] < now.timestamps[0],
    )


def _features(knowledge: BEVKnowledge) -> list[Levels] | None:
    """Returns None where the detector has no FPN, or does not tell the strides of its levels."""
    if knowledge.fpn is None or knowledge.fpn_strides is None:
        return None
    levels = [_to_numpy(level) for level in knowledge.fpn]
    return [
        {
            stride: feature_response(level[camera])
            for stride, level in zip(knowledge.fpn_strides, levels, strict=True)
        }
        for camera in range(len(levels[0]))
    ]


def _to_numpy(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().cpu().numpy()
