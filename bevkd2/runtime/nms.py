"""Suppression of rotated boxes in numpy, by the rules of :mod:`bevkd2.ops.box3d`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_SIGNS = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
_ON_EDGE = 1e-12  # of the area of the product of two edges, in which rounding must not lose a corner


def rotated_nms(
    boxes: Array, scores: Array, labels: Array, threshold: float, *, inclusive: bool = False
) -> npt.NDArray[np.int64]:
    """Suppresses overlapping boxes of equal labels.

    Args:
        boxes: (N, 5) x, y of the centre, length, width (m), angle (rad, counter-clockwise from +x).
        scores: (N,).
        labels: (N,) integers.
        threshold: a box is suppressed if a kept box of higher score and the same label overlaps it by more.
        inclusive: also suppress at an IoU equal to the threshold.

    Returns:
        (K,) int64 indices of the boxes kept, by falling score; of equal scores the lower index comes first.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    alive = np.ones(len(boxes), dtype=bool)
    kept = []
    for place, index in enumerate(order):
        if not alive[index]:
            continue
        kept.append(index)
        others = order[place + 1 :]
        others = others[alive[others] & (labels[others] == labels[index])]
        if len(others):
            overlaps = rotated_iou(np.broadcast_to(boxes[index], (len(others), 5)), boxes[others])
            alive[others[overlaps >= threshold if inclusive else overlaps > threshold]] = False
    return np.array(kept, dtype=np.int64)


def rotated_iou(first: Array, second: Array) -> npt.NDArray[np.float64]:
    """Computes the intersection over union of pairs of boxes.

    Args:
        first: (N, 5) as :func:`rotated_nms`.
        second: (N, 5).

    Returns:
        (N,) float64; 0 where a box has no area.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    result = np.zeros(len(first))
    # Only boxes whose circles touch can overlap; most pairs of an image do not.
    reach = np.hypot(first[:, 2], first[:, 3]) + np.hypot(second[:, 2], second[:, 3])
    near = np.hypot(*(first[:, :2] - second[:, :2]).T) * 2 <= reach
    if near.any():
        result[near] = _iou(first[near], second[near])
    return result


def _iou(first: Array, second: Array) -> Array:
    areas = first[:, 2] * first[:, 3], second[:, 2] * second[:, 3]
    origin = first[:, None, :2]  # coordinates stay small
    a, b = _corners(first) - origin, _corners(second) - origin
    points, valid = _crossings(a, b)
    points = np.concatenate([a, b, points], axis=1)
    valid = np.concatenate([_inside(a, b), _inside(b, a), valid], axis=1)
    common = np.where(valid.sum(1) >= 3, _hull_area(points, valid), 0.0)
    union = areas[0] + areas[1] - common
    overlap: Array = np.divide(
        common, union, out=np.zeros(len(common)), where=(areas[0] > 0) & (areas[1] > 0)
    )
    return overlap


def _corners(boxes: Array) -> Array:
    """Returns (N, 4, 2), counter-clockwise."""
    offsets = boxes[:, None, 2:4] * _SIGNS
    cos, sin = np.cos(boxes[:, 4, None]), np.sin(boxes[:, 4, None])
    turned = np.stack(
        [cos * offsets[..., 0] - sin * offsets[..., 1], sin * offsets[..., 0] + cos * offsets[..., 1]],
        axis=-1,
    )
    corners: Array = turned + boxes[:, None, :2]
    return corners


def _cross(u: Array, v: Array) -> Array:
    product: Array = u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]
    return product


def _inside(points: Array, polygon: Array) -> Array:
    """Returns (N, 4) bool: the points (N, 4, 2) lie in the polygon (N, 4, 2) or on its edge."""
    edges = np.roll(polygon, -1, axis=1) - polygon
    sides = _cross(edges[:, None], points[:, :, None] - polygon[:, None])
    slack = _ON_EDGE * (edges**2).sum(-1).max(1)[:, None, None]
    inside: Array = (sides >= -slack).all(-1)
    return inside


def _crossings(a: Array, b: Array) -> tuple[Array, Array]:
    """Returns where the edges of two polygons cross, (N, 16, 2), and which of these 16 do, (N, 16)."""
    start, step = a[:, :, None], (np.roll(a, -1, axis=1) - a)[:, :, None]
    other, stride = b[:, None], (np.roll(b, -1, axis=1) - b)[:, None]
    determinant = _cross(step, stride)
    parallel = determinant == 0
    safe = np.where(parallel, 1.0, determinant)
    t = _cross(other - start, stride) / safe
    u = _cross(other - start, step) / safe
    valid = ~parallel & (t >= 0) & (t <= 1) & (u >= 0) & (u <= 1)
    points = start + t[..., None] * step
    return points.reshape(len(a), 16, 2), valid.reshape(len(a), 16)


def _hull_area(points: Array, valid: Array) -> Array:
    """Returns the area of the convex polygon whose corners are the valid points, in any order."""
    count = np.maximum(valid.sum(1), 1)[:, None]
    center = np.where(valid[..., None], points, 0).sum(1) / count
    rays = points - center[:, None]
    # An invalid point takes the place of the first one by angle, where it adds no area.
    angle = np.where(valid, np.arctan2(rays[..., 1], rays[..., 0]), np.inf)
    order = np.argsort(angle, axis=1)
    rays = np.take_along_axis(rays, order[..., None], axis=1)
    rays = np.where(np.take_along_axis(valid, order, axis=1)[..., None], rays, rays[:, :1])
    area: Array = _cross(rays, np.roll(rays, -1, axis=1)).sum(1) / 2
    return area
