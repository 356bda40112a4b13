"""Assignment of objects to locations of a pyramid (FCOS3D, arXiv 2104.10956, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bevkd2.modeling.mono.grid import BACKGROUND
from bevkd2.modeling.mono.inputs import MonoTargets


def assign_locations(
    targets: MonoTargets,
    regress_ranges: Sequence[tuple[float, float]],
    center_radius: float = 1.5,
) -> Tensor:
    """Assigns to every location the object that it has to predict.

    A location is assigned to an object where it is nearer than ``center_radius`` strides, in x and in y, to
    the projected 3D centre, and the farthest side of the 2D box from it lies in the level's range (both ends
    included; the location may lie outside of the box). Of several objects the one with the nearest projected
    centre is taken, and of those with the same centre the first.

    Args:
        targets: annotations of B images; each image is assigned on its own.
        regress_ranges: the smallest and the largest distance in pixels, per level.
        center_radius: half the side of the square around a centre, in strides of the level.

    Returns:
        (B, Q) int64: index of the object in its image's lists, -1 for background. It may serve as
        ``MonoTargets.assigned``.

    Raises:
        ValueError: the number of ranges is not that of the levels.
    """
    grid = targets.grid
    if len(grid.shapes) != len(regress_ranges):
        raise ValueError(
            f"assign_locations: {len(grid.shapes)} levels, {len(regress_ranges)} regress ranges, expected "
            "one per level"
        )
    radii, ranges = center_radius * grid.location_strides, grid.per_location(regress_ranges)
    return torch.stack(
        [
            _assign_image(grid.locations, radii, ranges, centers, boxes)
            for centers, boxes in zip(targets.centers2d, targets.boxes2d, strict=True)
        ]
    )


def distances_to_sides(locations: Tensor, boxes2d: Tensor) -> Tensor:
    """Computes the distances to the sides of boxes; negative beyond a side.

    Args:
        locations: (..., 2) x, y in pixels.
        boxes2d: (..., 4) x1, y1, x2, y2 in pixels; leading dimensions broadcast.

    Returns:
        (..., 4) pixels to the left, top, right and bottom side.
    """
    return torch.cat([locations - boxes2d[..., :2], boxes2d[..., 2:] - locations], dim=-1)


def _assign_image(
    locations: Tensor, radii: Tensor, ranges: Tensor, centers2d: Tensor, boxes2d: Tensor
) -> Tensor:
    """Returns (Q,) int64 of one image with n objects."""
    if not len(centers2d):
        return torch.full((len(locations),), BACKGROUND, device=locations.device)
    offsets = locations[:, None] - centers2d[None]
    near = offsets.abs().amax(dim=-1) < radii[:, None]
    farthest = distances_to_sides(locations[:, None], boxes2d[None]).amax(dim=-1)
    in_range = (farthest >= ranges[:, :1]) & (farthest <= ranges[:, 1:])
    distance, nearest = offsets.norm(dim=-1).where(near & in_range, torch.inf).min(dim=1)
    assigned: Tensor = nearest.where(distance.isfinite(), BACKGROUND)
    return assigned
