"""The perspective matrix over an image (depth-guided distillation, Eq. 3), with the occlusion rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bevkd2.ops import occlusion_factor, perspective_matrix
from bevkd2.visualization.image_heat import TILE_WIDTH, Levels, Map, draw_heat_grid
from bevkd2.visualization.objects import Image

# Of the colours over the image: enough to read them by the bar, and to know the place.
_OPACITY = 0.75


@dataclasses.dataclass(frozen=True, eq=False)
class Occluders:
    """Objects that hide what is far (see ``bevkd2.ops.occlusion_factor``).

    Attributes:
        boxes2d: (n, 4) x1, y1, x2, y2 in pixels.
        depths: (n,) metres.
        near_depth: metres; objects beyond it hide nothing.
    """

    boxes2d: Tensor
    depths: Tensor
    near_depth: float


def perspective_maps(
    image_size: tuple[int, int],
    level_shapes: Mapping[int, tuple[int, int]],
    *,
    amplitude: float = 0.3,
    sigma: Sequence[float] = (0.7, 0.7),
    center: Sequence[float] = (0.5, 0.5),
    occluders: Occluders | None = None,
) -> dict[int, Map]:
    """Returns the weights that feature imitation gives to the cells of one image; defaults are the paper's.

    Args:
        image_size: height and width in pixels before padding.
        level_shapes: stride -> rows and columns of the level.
        amplitude: A of Eq. 3.
        sigma: sigma_x and sigma_y in image widths and heights.
        center: the farthest point, x and y in image widths and heights.
        occluders: the occlusion rule is applied with these objects; None: it is not.

    Returns:
        Stride -> (h, w).
    """
    sizes = torch.tensor([image_size], dtype=torch.float32)
    maps: dict[int, Map] = {}
    for stride, shape in level_shapes.items():
        weights = perspective_matrix(sizes, shape, stride, amplitude=amplitude, sigma=sigma, center=center)
        if occluders is not None:
            near = occluders.near_depth
            weights = weights * occlusion_factor([occluders.boxes2d], [occluders.depths], shape, stride, near)
        maps[stride] = weights[0].numpy()
    return maps


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
        amplitude: the number of the brightest colour, 0 is the darkest: the same scale for all.
        boxes2d: (n, 4) x1, y1, x2, y2 in pixels of ``image``, outlined in white.
        tile_width: pixels of one heat map.

    Returns:
        One image, every cell of a level in one colour.

    Raises:
        ValueError: there is no level, or one does not cover the image.
    """
    scales = dict.fromkeys(sorted(set[int]().union(*rows.values())), (0.0, amplitude))
    return draw_heat_grid(image, rows, scales, boxes2d, smooth=False, opacity=_OPACITY, tile_width=tile_width)
