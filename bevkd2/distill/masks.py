"""Weights of the cells of feature maps, drawn from the objects in them.

In images the objects are 2D boxes, on a BEV grid rotated boxes. See :mod:`bevkd2.ops.pixel_weights` for what
the kinds of masks are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from bevkd2.distill.sources import FeatureSource
from bevkd2.modeling.knowledge import BEVKnowledge, Knowledge
from bevkd2.ops import BoxMask, draw_weights, pack_boxes

MaskKind = Literal["foreground", "background", "gaussian"]


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
        boxes = _boxes(plane, targets)
        mask = BoxMask(*pack_boxes(boxes), kind=kind, normalize=normalize, alpha=alpha)
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
