"""The maps that the head of FCOS3D and PGD puts out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor


@dataclasses.dataclass
class DenseOutputs:
    """Lists with one map a level, finest first; B images, h x w cells, K classes.

    A cell (x, y) of a level with stride s stands at the pixel (x * s + s // 2, y * s + s // 2). Distances in
    the image plane are in strides of the level.
    """

    logits: list[Tensor]
    """(B, K, h, w) before the sigmoid."""
    boxes: list[Tensor]
    """(B, 7 or 9, h, w): dx, dy (location minus projected centre), direct depth (m), length, height, width
    (m: the published order), local yaw (rad, modulo pi: ``direction`` tells the half), then vx, vz (m/s)."""
    direction: list[Tensor]
    """(B, 2, h, w) logits of the half turn that the yaw lies in."""
    centerness: list[Tensor]
    """(B, 1, h, w) logits."""
    depth_bins: list[Tensor] | None = None
    """(B, bins, h, w) logits of the depth distribution (PGD)."""
    uncertainty: list[Tensor] | None = None
    """(B, 1, h, w) log of the depth's scale (PGD on KITTI)."""
    keypoints: list[Tensor] | None = None
    """(B, 16, h, w) x, y of the eight projected corners minus the location, squashed by tanh: 1 is the finest
    level's longest distance, scaled with the stride (PGD on KITTI)."""
    boxes2d: list[Tensor] | None = None
    """(B, 4, h, w) distances to left, top, right, bottom of the 2D box, not negative (PGD)."""
    attributes: list[Tensor] | None = None
    """(B, 9, h, w) logits (nuScenes)."""


def locations_of(
    level_shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device
) -> Tensor:
    """Where the cells of all levels stand in the network's input.

    Args:
        level_shapes: rows and columns of every level.
        strides: pixels to a cell of every level.
        device: where to put them.

    Returns:
        (Q, 2) float32 x, y in pixels: level by level, row-major within a level.
    """
    levels = []
    for (rows, columns), stride in zip(level_shapes, strides, strict=True):
        y = torch.arange(rows, dtype=torch.float32, device=device) * stride + stride // 2
        x = torch.arange(columns, dtype=torch.float32, device=device) * stride + stride // 2
        levels.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2))
    return torch.cat(levels)


def strides_of_locations(
    level_shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device
) -> Tensor:
    """(Q,) float32: the stride of the level that each location of :func:`locations_of` belongs to."""
    cells = [rows * columns for rows, columns in level_shapes]
    levels = zip(cells, strides, strict=True)
    return torch.cat([torch.full((count,), float(stride), device=device) for count, stride in levels])


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, C, h, w) of all levels to (B, Q, C), in the order of :func:`locations_of`."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
