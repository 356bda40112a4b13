"""Weights of the cells of feature maps, drawn from the objects in them.

In images the objects are 2D boxes, on a BEV grid rotated boxes. See :mod:`bevkd2.ops.pixel_weights` for what
the kinds of masks are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from bevkd2.distill.sources import FeatureSource
from bevkd2.modeling.knowledge import BEVKnowledge, Knowledge
from bevkd2.ops import BoxMask, draw_weights, pack_boxes

MaskKind = Literal["foreground", "background", "gaussian"]
Rounding = Literal["centers", "outward", "truncated"]
"""Which cells of an image's map lie in a box: those whose centres do; those that the box touches, one more at
its right and lower side where that falls between two cells (FGD); or those from the cell of its first corner
to the one before its second corner's, one at least (DeFeat). Boxes on BEV grids, which are turned, are always
drawn by centres."""
_LEVEL_SCALE = 14.0  # an object of 56 pixels and more leaves the level of stride 4 (FPN, Eq. 1, in mmdet)


@runtime_checkable
class ImageObjects(Protocol):
    """Targets with 2D boxes."""

    def image_boxes(self) -> list[Tensor]:
        """Returns one tensor (n, 4) per image of the batch: x1, y1, x2, y2 in pixels."""
        ...


@runtime_checkable
class GridObjects(Protocol):
    """Targets with boxes on the ground."""

    def grid_boxes(self) -> list[Tensor]:
        """Returns one tensor (n, 5) per sample: x, y, length, width in metres, yaw in radians."""
        ...


def draw_masks(
    sources: Sequence[FeatureSource],
    shapes: Sequence[tuple[int, int]],
    knowledge: Knowledge,
    targets: Any,
    kind: MaskKind,
    *,
    normalize: bool = False,
    alpha: float = 1.0,
    rounding: Rounding = "centers",
    one_level: bool = False,
) -> list[Tensor]:
    """Draws an object mask for every feature map.

    Args:
        sources: of the maps.
        shapes: rows and columns of each map.
        knowledge: the student's: sizes of the images, range of the grid.
        targets: the student's, which know the objects.
        kind: "foreground", "background" or "gaussian".
        normalize: every object, or the whole background, gets the total weight 1.
        alpha: width of "gaussian".
        rounding: of boxes to cells, in images.
        one_level: of the neck's levels, an object is drawn on the one of its size alone.

    Returns:
        One mask (R, h, w) float32 per map. The padding of images has weight 0.

    Raises:
        ValueError: targets without boxes in the plane of a map.
    """
    masks: dict[int, Tensor] = {}
    for plane in ("image", "bev"):
        chosen = [i for i, source in enumerate(sources) if source.plane == plane]
        if not chosen:
            continue
        packed, splits = pack_boxes(_boxes(plane, targets))
        if plane == "image" and (one_level or rounding != "centers"):
            levels = sorted(s for source in sources if source.field == "fpn" and (s := source.stride))
            sizes = knowledge.filled("image_sizes")
            for i in chosen:
                stride = sources[i].stride
                assert stride is not None
                boxes = packed
                if one_level and sources[i].field == "fpn":
                    boxes = _of_level(boxes, levels, levels.index(stride))
                mask = BoxMask(
                    round_boxes(boxes, stride, rounding), splits, kind=kind, normalize=normalize, alpha=alpha
                )
                drawn = draw_weights([shapes[i]], strides=[stride], image_sizes=sizes, boxes=[mask])
                masks[i] = drawn.levels()[0]
            continue
        mask = BoxMask(packed, splits, kind=kind, normalize=normalize, alpha=alpha)
        level_shapes = [shapes[i] for i in chosen]
        if plane == "image":
            strides = [stride for i in chosen if (stride := sources[i].stride) is not None]
            sizes = knowledge.filled("image_sizes")
            weights = draw_weights(level_shapes, strides=strides, image_sizes=sizes, boxes=[mask])
        else:
            assert isinstance(knowledge, BEVKnowledge)
            weights = draw_weights(level_shapes, grid_range=knowledge.filled("bev_range"), boxes=[mask])
        masks |= zip(chosen, weights.levels(), strict=True)
    return [masks[i] for i in range(len(sources))]


def round_boxes(boxes: Tensor, stride: int, rounding: Rounding) -> Tensor:
    """Rounds boxes to whole cells.

    Args:
        boxes: (n, 4) x1, y1, x2, y2 in pixels.
        stride: pixels per cell.
        rounding: as in :func:`draw_masks`.

    Returns:
        (n, 4) in pixels.
    """
    if rounding == "centers":
        return boxes
    cells = boxes / stride
    if rounding == "outward":
        return torch.cat([cells[:, :2].floor(), cells[:, 2:].ceil() + 1], dim=1) * stride
    first, end = cells[:, :2].trunc(), cells[:, 2:].trunc()
    thin = (first == end).any(dim=1, keepdim=True)
    return torch.cat([first, torch.where(thin, first + 1, end)], dim=1) * stride


def _of_level(boxes: Tensor, strides: Sequence[int], level: int) -> Tensor:
    """Returns the boxes of one level's objects; the others are NaN, which is drawn nowhere."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    scale = sides.prod(dim=1).sqrt() / (_LEVEL_SCALE * strides[0])
    levels = (scale + 1e-6).log2().floor().clamp(0, len(strides) - 1)
    return boxes.where((levels == level)[:, None], torch.nan)


def draw_content(
    sources: Sequence[FeatureSource], shapes: Sequence[tuple[int, int]], knowledge: Knowledge
) -> list[Tensor | None]:
    """Draws where the image is and not its padding.

    Args:
        sources: of the maps.
        shapes: rows and columns of each map.
        knowledge: the student's.

    Returns:
        One mask (R, h, w) float32 of zeros and ones per map; None for a BEV grid, which has no padding.
    """
    chosen = [i for i, source in enumerate(sources) if source.stride is not None]
    if not chosen:
        return [None] * len(sources)
    weights = draw_weights(
        [shapes[i] for i in chosen],
        strides=[stride for i in chosen if (stride := sources[i].stride) is not None],
        image_sizes=knowledge.filled("image_sizes"),
    )
    masks = dict(zip(chosen, weights.levels(), strict=True))
    return [masks.get(i) for i in range(len(sources))]


def _boxes(plane: str, targets: Any) -> list[Tensor]:
    if plane == "image" and isinstance(targets, ImageObjects):
        return targets.image_boxes()
    if plane == "bev" and isinstance(targets, GridObjects):
        return targets.grid_boxes()
    method = "image_boxes()" if plane == "image" else "grid_boxes()"
    raise ValueError(
        f"a mask of objects needs targets with {method}, which {type(targets).__name__} lacks; leave the "
        "source out, or let the detector's targets have it"
    )
