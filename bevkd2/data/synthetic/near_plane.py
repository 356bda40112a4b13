"""Clipping of polygons before they are projected."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

NEAR = 0.2
"""Metres along the optical axis: nearer surfaces are not drawn."""


def clip_near(polygon: Array) -> Array:
    """Cuts off what lies nearer than the near plane (Sutherland and Hodgman's algorithm for one plane).

    Args:
        polygon: (k, 3) corners in the camera's frame, in order, at least one beyond the near plane.

    Returns:
        (m, 3) corners with a depth of at least NEAR, in order.
    """
    depth = polygon[:, 2] - NEAR
    if (depth >= 0).all():
        return polygon
    following, next_depth = np.roll(polygon, -1, axis=0), np.roll(depth, -1)
    corners = []
    for a, b, da, db in zip(polygon, following, depth, next_depth, strict=True):
        if da >= 0:
            corners.append(a)
        if (da >= 0) != (db >= 0):
            corners.append(a + da / (da - db) * (b - a))
    return np.array(corners)


def project(points: Array, intrinsics: Array) -> Array:
    """Returns the pixel coordinates (k, 2) of points (k, 3) in the camera's frame, all in front of it."""
    return (points @ intrinsics.T)[:, :2] / points[:, 2:]
