"""Queries of the bird's-eye view: positions, ego motion, and the history brought into the present's frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class BEVPosition(nn.Module):
    """Learned position of every cell, half of the channels from its column, half from its row."""

    def __init__(self, shape: tuple[int, int], embed_dim: int) -> None:
        """Make the two tables.

        Args:
            shape: rows (y) and columns (x) of the grid.
            embed_dim: C, even.
        """
        super().__init__()
        self.row = nn.Parameter(torch.rand(shape[0], embed_dim // 2))
        self.column = nn.Parameter(torch.rand(shape[1], embed_dim // 2))

    def forward(self) -> Tensor:
        """Returns (H*W, C): channels of the column (x) first, then of the row (y)."""
        height, width = len(self.row), len(self.column)
        column = self.column[None].expand(height, -1, -1)
        row = self.row[:, None].expand(-1, width, -1)
        return torch.cat([column, row], dim=-1).flatten(0, 1)


def can_bus_embedding(embed_dim: int) -> nn.Sequential:
    """Returns the layers that embed the 18 numbers of ego motion, to be added to every BEV query."""
    return nn.Sequential(
        nn.Linear(18, embed_dim // 2),
        nn.ReLU(),
        nn.Linear(embed_dim // 2, embed_dim),
        nn.ReLU(),
        nn.LayerNorm(embed_dim),
    )


def ego_motion(can_bus: Tensor, previous: Tensor, has_history: Tensor, *, wrap_yaw: bool = True) -> Tensor:
    """Replaces the absolute position and yaw angle in the 18-vector by the change since the previous frame.

    Args:
        can_bus: (B, 18) float64, absolute.
        previous: (B, 18) float64, absolute, of the previous frame; ignored where there is none.
        has_history: (B,) bool.
        wrap_yaw: bring the change of yaw into [-180, 180).

    Returns:
        (B, 18) float64: [0:3] metres in global axes, [17] degrees, both 0 without history; [16] stays the
        absolute yaw in radians.
    """
    delta = can_bus.clone()
    yaw = can_bus[:, 17] - previous[:, 17]
    if wrap_yaw:
        yaw = torch.remainder(yaw + 180, 360) - 180
    zero = torch.zeros_like(yaw)
    delta[:, :3] = torch.where(has_history[:, None], can_bus[:, :3] - previous[:, :3], zero[:, None])
    delta[:, 17] = torch.where(has_history, yaw, zero)
    return delta


def grid_shift(delta: Tensor, pc_range: Sequence[float]) -> Tensor:
    """Ego translation as a fraction of the grid: a point now at p was at p + shift in the aligned old grid.

    Args:
        delta: (B, 18) float64 of :func:`ego_motion`.
        pc_range: x0, y0, z0, x1, y1, z1 in metres.

    Returns:
        (B, 2) float64: rightward (x) and forward (y) displacement over the grid's extent.
    """
    distance = torch.hypot(delta[:, 0], delta[:, 1])
    angle = delta[:, 16] - torch.atan2(delta[:, 1], delta[:, 0])
    shift_x = distance * angle.sin() / (pc_range[3] - pc_range[0])
    shift_y = distance * angle.cos() / (pc_range[4] - pc_range[1])
    return torch.stack([shift_x, shift_y], dim=-1)


def rotation_source_index(degrees: Tensor, shape: tuple[int, int], center: tuple[float, float]) -> Tensor:
    """For every cell, the cell that lands on it when the grid is turned; nearest neighbour.

    Args:
        degrees: (B,) float64: change of yaw.
        shape: rows (y) and columns (x) of the grid.
        center: x, y in cells of the fixed point.

    Returns:
        (B, H*W) int64, row-major; -1 where the source lies outside the grid.
    """
    height, width = shape
    angle = (degrees.double() * (math.pi / 180))[:, None]
    dx = torch.arange(width, device=degrees.device, dtype=torch.float64).repeat(height) + 0.5 - center[0]
    dy = (
        torch.arange(height, device=degrees.device, dtype=torch.float64).repeat_interleave(width)
        + 0.5
        - center[1]
    )
    column = (angle.cos() * dx - angle.sin() * dy + (center[0] - 0.5)).round().long()
    row = (angle.sin() * dx + angle.cos() * dy + (center[1] - 0.5)).round().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return torch.where(inside, row * width + column, -1)


def gather_cells(bev: Tensor, index: Tensor) -> Tensor:
    """Moves cells of a grid.

    Args:
        bev: (B, H*W, C).
        index: (B, H*W) int64: source cell, -1 for zeros.

    Returns:
        (B, H*W, C).
    """
    moved = bev.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, bev.shape[-1]))
    return moved * (index >= 0)[..., None].to(bev.dtype)
