"""Which object a location of the pyramid stands for (FCOS3D, arXiv 2104.10956, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bevkd2.modeling.mono.grid import locations_of, strides_of_locations
from bevkd2.modeling.mono.inputs import MonoTargets

BACKGROUND = -1


def assign_locations(
    targets: MonoTargets,
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    regress_ranges: Sequence[tuple[float, float]],
    center_radius: float = 1.5,
) -> Tensor:
    """Gives every location the object that it has to find.

    A location stands for an object where it is nearer than ``center_radius`` strides, in x and in y, to the
    projected 3D centre, and the farthest side of the 2D box from it lies in the level's range (both ends
    included; the location may lie outside of the box). Of several objects the one with the nearest projected
    centre is taken, and of those with the same centre the first.

    Args:
        targets: annotations of B images; each image is assigned for itself.
        shapes: rows and columns of the L levels.
        strides: pixels to a cell, level by level.
        regress_ranges: the least and the largest distance in pixels, level by level.
        center_radius: half the side of the square around a centre, in strides of the level.

    Returns:
        (B, Q) int64: index of the object in its image's lists, -1 for background. It may serve as
        ``MonoTargets.assigned``.

    Raises:
        ValueError: as many ranges as levels are needed.
    """
    if not len(shapes) == len(strides) == len(regress_ranges):
        raise ValueError(
            f"assign_locations: {len(shapes)} levels, {len(strides)} strides, {len(regress_ranges)} regress "
            "ranges, expected as many of each"
        )
    device = targets.cam2img.device
    locations = locations_of(shapes, strides, device)
    radii = center_radius * strides_of_locations(shapes, strides, device)
    cells = torch.tensor([rows * columns for rows, columns in shapes], device=device)
    ranges = torch.tensor(regress_ranges, dtype=torch.float32, device=device)
    # Without the size, CUDA would have to be waited for.
    ranges = ranges.repeat_interleave(cells, dim=0, output_size=len(locations))
    return torch.stack(
        [
            _assign_image(locations, radii, ranges, centers, boxes)
            for centers, boxes in zip(targets.centers2d, targets.boxes2d, strict=True)
        ]
    )


def distances_to_sides(locations: Tensor, boxes2d: Tensor) -> Tensor:
    """How far the sides of boxes are; negative beyond a side.

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
    """(Q,) int64 of one image with n objects."""
    if not len(centers2d):
        return torch.full((len(locations),), BACKGROUND, device=locations.device)
    offsets = locations[:, None] - centers2d[None]
    near = offsets.abs().amax(dim=-1) < radii[:, None]
    farthest = distances_to_sides(locations[:, None], boxes2d[None]).amax(dim=-1)
    in_range = (farthest >= ranges[:, :1]) & (farthest <= ranges[:, 1:])
    distance, nearest = offsets.norm(dim=-1).where(near & in_range, torch.inf).min(dim=1)
    return nearest.where(distance.isfinite(), BACKGROUND)
