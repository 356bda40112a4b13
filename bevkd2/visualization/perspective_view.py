"""The perspective matrix over an image (depth-guided distillation, Eq. 3), with the occlusion rule."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bevkd2.distill.methods.perspective_feature import PerspectiveWeights
from bevkd2.visualization.image_heat import TILE_WIDTH, Levels, Map, draw_heat_grid
from bevkd2.visualization.objects import Image

# Of the colours over the image: strong enough to be compared with the colour bar, while the image is visible.
_OPACITY = 0.75


def perspective_maps(
    weights: PerspectiveWeights,
    image_size: tuple[int, int],
    level_shapes: Mapping[int, tuple[int, int]],
    boxes2d: Tensor | None = None,
    depths: Tensor | None = None,
) -> dict[int, Map]:
    """Returns the weights of the cells of one image in feature imitation.

    Args:
        weights: the weights of the method.
        image_size: height and width in pixels before padding.
        level_shapes: stride -> rows and columns of the level.
        boxes2d: (n, 4) x1, y1, x2, y2 in pixels of the objects; None: no objects.
        depths: (n,) of the same objects, metres.

    Returns:
        Stride -> (h, w), 0 in the padding.
    """
    drawn = weights.draw(
        list(level_shapes.values()),
        list(level_shapes),
        torch.tensor([image_size], dtype=torch.float32),
        [torch.zeros(0, 4) if boxes2d is None else boxes2d],
        [torch.zeros(0) if depths is None else depths],
    )
    return {stride: level[0].numpy() for stride, level in zip(level_shapes, drawn.levels(), strict=True)}


def draw_perspective(
    image: Image,
    rows: Mapping[str, Levels],
    amplitude: float,
    boxes2d: Map | None = None,
    tile_width: int = TILE_WIDTH,
) -> Image:
    """Draws perspective matrices: one row per variant, one column per level.

    Args:
        image: (H, W, 3) RGB.
        rows: name of the variant -> stride -> (h, w) of ``perspective_maps``.
        amplitude: the value of the brightest colour; 0 is the darkest. All matrices share this scale.
        boxes2d: (n, 4) x1, y1, x2, y2 in pixels of ``image``, outlined in white.
        tile_width: pixels of one heat map.

    Returns:
        One image; each cell of a level has one colour.

    Raises:
        ValueError: there is no level, or one does not cover the image.
    """
    scales = dict.fromkeys(sorted(set[int]().union(*rows.values())), (0.0, amplitude))
    return draw_heat_grid(image, rows, scales, boxes2d, smooth=False, opacity=_OPACITY, tile_width=tile_width)
