"""FPN features of several models over one image or all cameras (depth-guided distillation, Fig. 8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from bevkd2.visualization.camera_view import MOSAIC, MOSAIC_GAP, draw_box_edges, mosaic
from bevkd2.visualization.canvas import resize, stack, with_title
from bevkd2.visualization.image_heat import (
    TILE_WIDTH,
    Levels,
    Map,
    color_bar,
    column_width,
    content_cells,
    draw_heat_grid,
    heat_tile,
)
from bevkd2.visualization.objects import Array, DrawnObjects, Image

Key = TypeVar("Key")  # of what the levels are: a model, or a camera of a model

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
    responses: Mapping[Key, Levels], image_size: tuple[int, int]
) -> dict[int, tuple[float, float]]:
    """Returns one colour scale per level for all models: percentiles 1 and 99.5 of all their cells.

    Args:
        responses: model, or model and camera -> levels.
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


def draw_camera_features(
    images: Mapping[str, Image],
    responses: Mapping[str, Mapping[str, Levels]],
    lidar2img: Mapping[str, Array],
    objects: DrawnObjects | None = None,
) -> Image:
    """Draws the FPN features of all cameras: one row per model below the images, one column per level.

    All models and cameras share the colour scale of a column, so brighter means a stronger response.

    Args:
        images: camera name -> (H, W, 3) RGB that the features are of, before padding; all of one size.
        responses: name of the model -> camera name -> stride -> (h, w) of ``feature_response``.
        lidar2img: camera name -> (4, 4) metres to pixels of the image.
        objects: outlined in white; usually the ground truth.

    Returns:
        One image.

    Raises:
        ValueError: there is no level, or one does not cover the image.
    """
    by_camera = {(model, name): levels for model, of in responses.items() for name, levels in of.items()}
    if not any(by_camera.values()):
        raise ValueError(f"the models {', '.join(responses) or '(none)'} have no FPN level to draw")
    first = next(iter(images.values()))
    size = (first.shape[0], first.shape[1])
    scales = shared_scales(by_camera, size)
    columns = len(MOSAIC[0])
    tile_width = (column_width(by_camera.values()) - MOSAIC_GAP * (columns - 1)) // columns
    small = {name: resize(image, tile_width / size[1]) for name, image in images.items()}
    cameras = with_title(mosaic(_outlined(small, size, lidar2img, objects)), "cameras", height=10)
    drawn = []
    for stride, scale in scales.items():
        parts = [cameras]
        for model in responses:
            tiles = {name: np.full_like(image, 255) for name, image in small.items()}
            for name, image in small.items():
                levels = by_camera.get((model, name), {})
                if stride in levels:
                    tiles[name] = heat_tile(
                        image, levels[stride], stride, size, scale, smooth=True, opacity=1
                    )
            panel = mosaic(_outlined(tiles, size, lidar2img, objects))
            parts.append(with_title(panel, f"{model}, stride {stride}", height=10))
        drawn.append(stack([*parts, color_bar(*scale, cameras.shape[1])], axis=0, gap=3))
    return stack(drawn, axis=1)


def _outlined(
    tiles: Mapping[str, Image],
    image_size: tuple[int, int],
    lidar2img: Mapping[str, Array],
    objects: DrawnObjects | None,
) -> dict[str, Image]:
    """Returns copies of resized cameras, with the edges of objects in white."""
    copies = {name: tile.copy() for name, tile in tiles.items()}
    if objects is None:
        return copies
    height, width = image_size
    for name, tile in copies.items():
        shrink = np.diag([tile.shape[1] / width, tile.shape[0] / height, 1.0, 1.0])
        draw_box_edges(tile, objects, shrink @ lidar2img[name], (255, 255, 255))
    return copies
