"""The BEV response: mean absolute BEV embedding per cell (structured distillation, Eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from bevkd2.visualization.bev_view import BEVFrame, draw_outlines
from bevkd2.visualization.canvas import heat_map, put_text, stack
from bevkd2.visualization.objects import DrawnObjects, Image

Map = npt.NDArray[np.floating[Any]]

# Low and high of the colour scale: outliers must not darken everything else.
_PERCENTILES = (1.0, 99.5)


def bev_response(bev_embed: Map, bev_shape: tuple[int, int]) -> Map:
    """Computes the mean absolute BEV embedding of each cell (structured distillation, Eq. 7).

    Args:
        bev_embed: (H*W, C), row-major.
        bev_shape: (H, W).

    Returns:
        (H, W); rows grow with y, columns with x.

    Raises:
        ValueError: the embedding does not have H*W cells.
    """
    if len(bev_embed) != bev_shape[0] * bev_shape[1]:
        raise ValueError(
            f"bev_response: bev_embed has {len(bev_embed)} cells, expected {bev_shape[0]} x {bev_shape[1]}"
        )
    response: Map = np.abs(bev_embed).mean(axis=1).reshape(bev_shape)
    return response


def draw_cells(values: Map, frame: BEVFrame, low: float | None = None, high: float | None = None) -> Image:
    """Draws one value per cell as a heat map from above.

    Args:
        values: (H, W) over the frame's extent, rows grow with y; NaN is grey.
        frame: the extent of the cells, and the size of the picture.
        low: value of the darkest colour; by default the 1st percentile of the values.
        high: value of the brightest colour; by default the 99.5th.

    Returns:
        An image of ``frame.shape``, y upwards.
    """
    known = values[~np.isnan(values)]
    default = np.percentile(known, _PERCENTILES) if known.size else np.array([0.0, 1.0])
    colors = heat_map(
        values, float(default[0]) if low is None else low, float(default[1]) if high is None else high
    )
    height, width = frame.shape
    picture = cv2.resize(colors[::-1], (width, height), interpolation=cv2.INTER_NEAREST)
    return np.ascontiguousarray(picture, dtype=np.uint8)


def draw_bev_responses(
    responses: Mapping[str, Map],
    frame: BEVFrame,
    objects: DrawnObjects | None = None,
    shared_scale: bool = False,
) -> Image:
    """Draws the BEV responses of several models side by side.

    Args:
        responses: name of the model -> (H, W); grids may differ.
        frame: the ground that all grids cover.
        objects: outlined in white in every picture; usually the ground truth.
        shared_scale: use one colour scale for all models instead of one per model; embeddings of other widths
            have responses of another magnitude.

    Returns:
        One image.
    """
    low = high = None
    if shared_scale:
        together = np.concatenate([values.ravel() for values in responses.values()])
        low, high = (float(v) for v in np.nanpercentile(together, _PERCENTILES))
    panels = []
    for name, values in responses.items():
        panel = draw_cells(values, frame, low, high)
        if objects is not None:
            draw_outlines(panel, frame, objects, (255, 255, 255))
        put_text(panel, name, (0, 0), height=12)
        panels.append(panel)
    return stack(panels, axis=1)
