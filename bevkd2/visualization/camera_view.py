"""Boxes in camera images."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt

from bevkd2.visualization.canvas import put_text, resize, stack
from bevkd2.visualization.objects import Array, DrawnObjects, Image

MOSAIC = (
    ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
)
"""The usual order of nuScenes' six cameras: cameras on the left of the car are on the left."""
MOSAIC_GAP = 2
"""Pixels between cameras."""
NEAR = 0.1
"""Metres: depth of the near plane; edges are cut there."""

# Pairs of corners of Boxes3D.corners; the front face first.
_EDGES = np.array(
    [[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6], [3, 7]]
)
_NUM_FRONT_EDGES = 4


def project_edges(corners: Array, lidar2img: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Projects the twelve edges of boxes, cut at the near plane.

    Args:
        corners: (N, 8, 3) of ``Boxes3D.corners``, metres.
        lidar2img: (4, 4) metres to pixels.

    Returns:
        (N, 12, 2, 2) both ends (x, y) of each edge in pixels, the four of the front face first, and (N, 12)
        whether some part of the edge is beyond the near plane; the other segments are zero.
    """
    points = corners @ lidar2img[:3, :3].T + lidar2img[:3, 3]
    ends = points[:, _EDGES]
    depth = ends[..., 2] - NEAR
    visible = (depth > 0).any(axis=-1)
    # If an edge crosses the plane, its nearer end is moved along the edge to the plane.
    difference = depth[..., 0] - depth[..., 1]
    crosses = visible & (depth <= 0).any(axis=-1)
    at = np.divide(depth[..., 0], difference, out=np.zeros_like(difference), where=crosses)
    crossing = ends[..., 0, :] + at[..., None] * (ends[..., 1, :] - ends[..., 0, :])
    for end in (0, 1):
        cut = crosses & (depth[..., end] <= 0)
        ends[cut, end] = crossing[cut]
    segments = np.zeros((*visible.shape, 2, 2))
    segments[visible] = ends[visible][..., :2] / ends[visible][..., 2:]
    return segments, visible


def draw_boxes(image: Image, objects: DrawnObjects, lidar2img: Array, scale: float = 1.0) -> Image:
    """Draws boxes into a camera image: near ones over far ones, the front face thick and shaded.

    Args:
        image: (H, W, 3) RGB.
        objects: what to draw.
        lidar2img: (4, 4) metres to pixels of ``image``.
        scale: the image is resized by this factor before lines are drawn, so that small images are readable.

    Returns:
        A new image, (scale * H, scale * W, 3).
    """
    canvas = resize(image, scale)
    if len(objects) == 0:
        return canvas
    corners = objects.corners()
    segments, visible = project_edges(corners, lidar2img)
    center_depth = corners.mean(axis=1) @ lidar2img[2, :3] + lidar2img[2, 3]
    for i in np.argsort(-center_depth):
        if visible[i].any() and _touches(segments[i][visible[i]], image.shape):
            _draw_box(canvas, segments[i] * scale, visible[i], objects.color(i))
    return canvas


def draw_box_edges(
    canvas: Image, objects: DrawnObjects, lidar2img: Array, color: tuple[int, int, int]
) -> None:
    """Draws thin edges of one colour, in place.

    Args:
        canvas: (H, W, 3) RGB.
        objects: what to draw.
        lidar2img: (4, 4) metres to pixels of the canvas.
        color: RGB.
    """
    segments, visible = project_edges(objects.corners(), lidar2img)
    for (x0, y0), (x1, y1) in _round(segments[visible]).tolist():
        cv2.line(canvas, (x0, y0), (x1, y1), color, 1, cv2.LINE_AA)


def _touches(segments: Array, shape: tuple[int, ...]) -> bool:
    """Returns whether the bounding box of (k, 2, 2) segments meets an image of a shape (H, W, ...)."""
    low, high = segments.min(axis=(0, 1)), segments.max(axis=(0, 1))
    return bool(high[0] >= 0 and high[1] >= 0 and low[0] < shape[1] and low[1] < shape[0])


def _round(points: Array) -> npt.NDArray[np.int64]:
    # Pixel (i, j) covers [j, j + 1) x [i, i + 1); OpenCV's coordinates are those of its centre.
    return np.rint(np.clip(points - 0.5, -1e6, 1e6)).astype(np.int64)


def _draw_box(
    canvas: Image, segments: Array, visible: npt.NDArray[np.bool_], color: tuple[int, int, int]
) -> None:
    pixels = _round(segments)
    if visible[:_NUM_FRONT_EDGES].all():
        shaded = canvas.copy()
        cv2.fillConvexPoly(shaded, pixels[:_NUM_FRONT_EDGES, 0].astype(np.int32), color, cv2.LINE_AA)
        cv2.addWeighted(shaded, 0.3, canvas, 0.7, 0, dst=canvas)
    for k in range(len(pixels) - 1, -1, -1):
        if visible[k]:
            (x0, y0), (x1, y1) = pixels[k].tolist()
            cv2.line(canvas, (x0, y0), (x1, y1), color, 2 if k < _NUM_FRONT_EDGES else 1, cv2.LINE_AA)


def mosaic(images: Mapping[str, Image]) -> Image:
    """Arranges camera images in the usual two rows of three, each with its name.

    Args:
        images: camera name -> image, all of the same size; those not in ``MOSAIC`` follow in rows of three.

    Returns:
        One image; the tile of a missing camera is black.
    """
    known = [name for row in MOSAIC for name in row]
    others = [name for name in images if name not in known]
    rows = [list(row) for row in MOSAIC if any(name in images for name in row)]
    rows += [others[i : i + 3] for i in range(0, len(others), 3)]
    blank = np.zeros_like(next(iter(images.values())))
    tiles = []
    for row in rows:
        named = [images[name].copy() if name in images else blank.copy() for name in row]
        for name, tile in zip(row, named, strict=True):
            put_text(tile, name, (0, 0), height=10)
        tiles.append(stack(named, axis=1, gap=MOSAIC_GAP))
    return stack(tiles, axis=0, gap=MOSAIC_GAP)
