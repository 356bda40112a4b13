"""Grid of locations of dense detectors: all cells of all levels, finest first, row-major."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def level_shapes(image_size: tuple[int, int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Rows and columns of every level of a pyramid.

    Args:
        image_size: height and width of the padded images in pixels.
        strides: pixels to a cell, level by level.

    Returns:
        As many pairs as levels; a convolution of stride 2 with padding 1 rounds up, and so does this.
    """
    height, width = image_size
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


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
