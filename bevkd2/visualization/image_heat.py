"""Heat maps of values per cell of feature levels, over the image that the features come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from bevkd2.visualization.canvas import heat_map, put_text, resize, stack
from bevkd2.visualization.objects import Image

Map = npt.NDArray[np.floating[Any]]
Levels = Mapping[int, Map]
"""Stride in pixels -> (h, w) values; cell (i, j) covers stride x stride pixels from (i, j) * stride on."""

TILE_WIDTH = 400
"""Pixels: width of one heat map."""
_BAR_HEIGHT, _TEXT_HEIGHT = 10, 9
_WIDEST_COLUMN, _GRID_WIDTH = 2 * TILE_WIDTH, 5 * TILE_WIDTH


def content_cells(cells: Map, stride: int, image_size: tuple[int, int]) -> Map:
    """Returns the cells whose first pixel is in the image, without those of padding only.

    Args:
        cells: (h, w).
        stride: pixels per cell.
        image_size: height and width before padding.

    Returns:
        (h', w'), at most (h, w).

    Raises:
        ValueError: the level does not cover the image.
    """
    rows, columns = (-(-side // stride) for side in image_size)
    if cells.ndim != 2 or rows > cells.shape[0] or columns > cells.shape[1]:
        raise ValueError(
            f"a level of stride {stride} has cells {cells.shape}, expected at least {(rows, columns)} for an "
            f"image of {image_size[0]} x {image_size[1]} pixels"
        )
    return cells[:rows, :columns]


def over_image(cells: Map, stride: int, image_size: tuple[int, int], smooth: bool) -> Map:
    """Spreads the values of cells over the pixels that they cover.

    Args:
        cells: (h, w).
        stride: pixels per cell.
        image_size: height and width of the image, before padding.
        smooth: True: bilinear between the centres of cells; False: constant over each cell.

    Returns:
        (H, W) float32.
    """
    kept = np.ascontiguousarray(content_cells(cells, stride, image_size), dtype=np.float32)
    size = (kept.shape[1] * stride, kept.shape[0] * stride)
    how = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(kept, size, interpolation=how)[: image_size[0], : image_size[1]])


def column_width(rows: Iterable[Levels]) -> int:
    """Returns the width of a level's column in pixels: the fewer levels, the wider.

    Args:
        rows: the levels of each row; a column is for a stride that any of them has.
    """
    return min(_WIDEST_COLUMN, _GRID_WIDTH // max(1, len(set[int]().union(*rows))))


def heat_tile(
    small: Image,
    cells: Map,
    stride: int,
    image_size: tuple[int, int],
    scale: tuple[float, float],
    *,
    smooth: bool,
    opacity: float,
) -> Image:
    """Draws one level over its image.

    Args:
        small: (h, w, 3) RGB, the image as large as the tile.
        cells: the level, see ``content_cells``.
        stride: pixels of the image per cell.
        image_size: height and width of the image, before padding.
        scale: values of the darkest and of the brightest colour.
        smooth: see ``over_image``.
        opacity: of the heat map over the grey image.

    Returns:
        An image like ``small``.

    Raises:
        ValueError: the level does not cover the image.
    """
    values = over_image(cells, stride, image_size, smooth)
    colors = heat_map(_resize(values, small, smooth), *scale)
    grey = cv2.cvtColor(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(colors, opacity, grey, 1 - opacity, 0), dtype=np.uint8)


def color_bar(low: float, high: float, width: int) -> Image:
    """Draws a strip with the colours of :func:`heat_map`, and the values of both ends below it.

    Args:
        low: the value at the left end.
        high: at the right end.
        width: of the strip in pixels.
    """
    strip = heat_map(np.linspace(0, 1, width)[None].repeat(_BAR_HEIGHT, axis=0), 0.0, 1.0)
    bar = np.pad(strip, ((2, _TEXT_HEIGHT + 9), (0, 0), (0, 0)), constant_values=255)
    put_text(bar, f"{low:.3g}", (0, _BAR_HEIGHT + 2), _TEXT_HEIGHT, box=False)
    text = f"{high:.3g}"
    (taken, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, _TEXT_HEIGHT / 22, 1)
    put_text(bar, text, (width - taken - 6, _BAR_HEIGHT + 2), _TEXT_HEIGHT, box=False)
    return bar


def draw_heat_grid(
    image: Image,
    rows: Mapping[str, Levels],
    scales: Mapping[int, tuple[float, float]],
    boxes2d: Map | None = None,
    *,
    smooth: bool,
    opacity: float,
    tile_width: int = TILE_WIDTH,
) -> Image:
    """Draws levels side by side, one row per name, with a colour bar below each column.

    Args:
        image: (H, W, 3) RGB.
        rows: name -> levels. The tile of a missing level is white.
        scales: stride -> values of the darkest and of the brightest colour; one column per stride, in order.
        boxes2d: (n, 4) x1, y1, x2, y2 in pixels of ``image``, outlined in white.
        smooth: see ``over_image``.
        opacity: of the heat maps over the grey image. With 1 the image is not visible, and is drawn above
            each column instead.
        tile_width: pixels of one heat map.

    Returns:
        One image.

    Raises:
        ValueError: there is no level, or a level has no scale or does not cover the image.
    """
    strides = set[int]().union(*rows.values())
    if not strides or strides - set(scales):
        raise ValueError(
            f"levels of strides {sorted(strides)} with colour scales for {sorted(scales)}; expected at "
            "least one level, and a scale for each"
        )
    size = (image.shape[0], image.shape[1])
    small = resize(image, tile_width / image.shape[1])
    outlined = small.copy()
    _outline(outlined, boxes2d, tile_width / image.shape[1])
    columns = []
    for stride, scale in scales.items():
        tiles = [outlined] if opacity == 1 else []
        for name, levels in rows.items():
            tile = np.full_like(small, 255)
            if stride in levels:
                tile = heat_tile(small, levels[stride], stride, size, scale, smooth=smooth, opacity=opacity)
                _outline(tile, boxes2d, tile_width / image.shape[1])
            put_text(tile, f"{name}, stride {stride}", (0, 0), height=10)
            tiles.append(tile)
        columns.append(stack([*tiles, color_bar(*scale, tile_width)], axis=0, gap=3))
    return stack(columns, axis=1)


def _resize(values: Map, like: Image, smooth: bool) -> Map:
    grows = like.shape[0] > values.shape[0]
    how = (cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST) if grows else cv2.INTER_AREA
    return np.asarray(cv2.resize(values, like.shape[1::-1], interpolation=how), dtype=np.float32)


def _outline(canvas: Image, boxes2d: Map | None, ratio: float) -> None:
    """Draws white rectangles, in place; those at the border are moved just inside."""
    if boxes2d is None:
        return
    last = np.array([canvas.shape[1] - 1, canvas.shape[0] - 1] * 2)
    for x1, y1, x2, y2 in np.clip(np.rint(boxes2d * ratio - 0.5), 0, last).astype(int).tolist():
        cv2.rectangle(canvas, (x1, y1), (x2, y2), (255, 255, 255), 1)
