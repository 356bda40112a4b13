"""FPN features of several models over one image (depth-guided distillation, Fig. 8)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bevkd2.visualization.image_heat import TILE_WIDTH, Levels, Map, content_cells, draw_heat_grid
from bevkd2.visualization.objects import Image

# Low and high of the colour scale: outliers must not darken everything else.
_PERCENTILES = (1.0, 99.5)


def feature_response(features: Map) -> Map:
    """Computes the mean absolute value over the channels, comparable between models of other widths.

    Args:
        features: (C, h, w).

    Returns:
        (h, w).

    Raises:
        ValueError: the features do not have three dimensions.
    """
    if features.ndim != 3:
        raise ValueError(f"feature_response: features are {features.shape}, expected (C, h, w) of one image")
    response: Map = np.abs(features).mean(axis=0)
    return response


def shared_scales(
    responses: Mapping[str, Levels], image_size: tuple[int, int]
) -> dict[int, tuple[float, float]]:
    """Returns one colour scale per level for all models: percentiles 1 and 99.5 of all their cells.

    Args:
        responses: name of the model -> levels.
        image_size: height and width in pixels before padding; cells of padding are not counted.

    Returns:
        Stride -> low and high, finest level first.
    """
    scales = {}
    for stride in sorted(set[int]().union(*responses.values())):
        cells = [content_cells(r[stride], stride, image_size) for r in responses.values() if stride in r]
        low, high = np.percentile(np.concatenate([c.ravel() for c in cells]), _PERCENTILES)
        scales[stride] = (float(low), float(high))
    return scales


def draw_feature_maps(
    image: Image,
    responses: Mapping[str, Levels],
    boxes2d: Map | None = None,
    tile_width: int = TILE_WIDTH,
) -> Image:
    """Draws the FPN features of several models: one row per model below the image, one column per level.

    All models share the colour scale of a column, so brighter means a stronger response.

    Args:
        image: (H, W, 3) RGB that the features are of, before padding.
        responses: name of the model -> stride -> (h, w) of ``feature_response``.
        boxes2d: (n, 4) x1, y1, x2, y2 in pixels of ``image``, outlined in white; usually the ground truth.
        tile_width: pixels of one heat map.

    Returns:
        One image.

    Raises:
        ValueError: there is no level, or one does not cover the image.
    """
    scales = shared_scales(responses, (image.shape[0], image.shape[1]))
    return draw_heat_grid(image, responses, scales, boxes2d, smooth=True, opacity=1, tile_width=tile_width)
