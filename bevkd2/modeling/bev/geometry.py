"""The grid's geometry: what cameras see of it, and how the previous one lies in the present frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from bevkd2.modeling.bev.inputs import Frames
from bevkd2.modeling.bev.projection import (
    VisiblePairs,
    bev_reference_points,
    find_visible_pairs,
    pillar_points,
    project_pillars,
)
from bevkd2.modeling.bev.queries import ego_motion, gather_cells, grid_shift, rotation_source_index
from bevkd2.modeling.bev.temporal_attention import History


@dataclasses.dataclass(frozen=True)
class PublishedFaults:
    """Faults of the published code that published weights were trained with; off unless asked for."""

    aliased_shift: bool = False
    """The current frame's temporal reference points are shifted too."""
    rotate_center: tuple[float, float] | None = None
    """x, y in cells about which the previous grid is turned; None: the grid's centre."""
    padding_visible: bool = False
    """Points that project into the padding count as visible."""
    unwrapped_yaw: bool = False
    """A change of yaw across north is embedded as nearly 360 degrees."""


@dataclasses.dataclass(frozen=True)
class BEVGeometry:
    """Shape and range of the grid, and everything that follows from them without parameters."""

    bev_shape: tuple[int, int]
    """Rows (y) and columns (x)."""
    pc_range: Sequence[float]
    """x0, y0, z0, x1, y1, z1 in metres."""
    num_pillar_points: int
    use_shift: bool = True
    rotate_previous: bool = True
    faults: PublishedFaults = PublishedFaults()

    @property
    def rotate_center(self) -> tuple[float, float]:
        """x, y in cells about which the previous grid is turned."""
        height, width = self.bev_shape
        return self.faults.rotate_center or (width / 2, height / 2)

    def visible_pairs(self, frames: Frames) -> VisiblePairs:
        """Which camera sees which cell, for every sample by its own calibration and image size."""
        points = pillar_points(self.bev_shape, self.pc_range, self.num_pillar_points, frames.lidar2img.device)
        sizes = frames.image_sizes
        if self.faults.padding_visible:
            sizes = sizes.new_tensor(frames.padded_size).expand_as(sizes)
        return find_visible_pairs(*project_pillars(points, frames.lidar2img, sizes, frames.padded_size))

    def motion(self, can_bus: Tensor, previous: Tensor | None, exists: list[bool]) -> Tensor:
        """The (B, 18) vector of :func:`~bevkd2.modeling.bev.queries.ego_motion`."""
        mask = torch.tensor(exists, device=can_bus.device)
        previous = can_bus if previous is None else previous
        return ego_motion(can_bus, previous, mask, wrap_yaw=not self.faults.unwrapped_yaw)

    def history(
        self, queries: Tensor, motion: Tensor, previous_bev: Tensor | None, exists: list[bool]
    ) -> History:
        """What the encoder's layers share about the past.

        Args:
            queries: (B, H*W, C), the encoder's input.
            motion: (B, 18) float64.
            previous_bev: (B, H*W, C) in the previous frame's pose; None where no sample has a past.
            exists: which samples have a past.
        """
        queue = None
        if previous_bev is not None and any(exists):
            queue = torch.stack([self.align(previous_bev, motion), queries], dim=1)
        return History(queue, exists, self.temporal_reference_points(motion, exists))

    def align(self, previous_bev: Tensor, motion: Tensor) -> Tensor:
        """The previous grid turned by the change of yaw, nearest neighbour, zeros from outside."""
        if not self.rotate_previous:
            return previous_bev
        return gather_cells(
            previous_bev, rotation_source_index(motion[:, 17], self.bev_shape, self.rotate_center)
        )

    def temporal_reference_points(self, motion: Tensor, exists: list[bool]) -> Tensor:
        """(B, 2, H*W, 2) float32: x, y as fractions of the grid, of the previous and the current one."""
        shift = grid_shift(motion, self.pc_range).float() * float(self.use_shift)
        shift = shift * torch.tensor(exists, device=shift.device)[:, None]
        current = torch.ones_like(shift) if self.faults.aliased_shift else torch.zeros_like(shift)
        by_queue = torch.stack([shift, shift * current], dim=1)
        return bev_reference_points(self.bev_shape, motion.device) + by_queue[:, :, None]
