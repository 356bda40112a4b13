"""Oriented 3D boxes, batched in one tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bevkd2.structures.box_tensor import BoxTensor

# Signs of the half extents (length, width, height) at the eight corners, in nuscenes-devkit's order.
_CORNER_SIGNS = (
    (1, 1, 1),
    (1, -1, 1),
    (1, -1, -1),
    (1, 1, -1),
    (-1, 1, 1),
    (-1, -1, 1),
    (-1, -1, -1),
    (-1, 1, -1),
)


def wrap_angle(angle: Tensor, *, start: float = -math.pi, period: float = 2 * math.pi) -> Tensor:
    """Wraps angles into one period, by default [-pi, pi).

    Args:
        angle: angles in radians, any shape.
        start: where the period starts, radians.
        period: its length, radians.

    Returns:
        The same angles modulo the period, in [start, start + period), shape and dtype kept.
    """
    wrapped = torch.remainder(angle - start, period) + start
    # In floating point the remainder can round up to the full period.
    return torch.where(wrapped >= start + period, torch.full_like(wrapped, start), wrapped)


class Boxes3D(BoxTensor):
    """N oriented boxes with an upright axis, in one metric frame with z up.

    For nuScenes the frame is LIDAR_TOP: x right, y forward, z up.

    Attributes:
        tensor: (N, 7) or (N, 9) floating point: x, y, z of the gravity centre, length (along the heading),
            width, height in metres, yaw in radians counter-clockwise about z from +x, and with nine columns
            the velocity vx, vy in m/s.
    """

    COLUMNS = "x, y, z, length, width, height, yaw[, vx, vy]"

    @property
    def bottom_center(self) -> Tensor:
        """(N, 3) centres of the bottom faces in metres."""
        drop = torch.zeros_like(self.center)
        drop[:, 2] = self.tensor[:, 5] / 2
        return self.center - drop

    @property
    def yaw(self) -> Tensor:
        """(N,) heading in radians."""
        return self.tensor[:, 6]

    def corners(self) -> Tensor:
        """Returns the eight corners, in nuscenes-devkit's order.

        Returns:
            (N, 8, 3) in metres. Seen along the heading, 0 to 3 are the front face: left top, right top, right
            bottom, left bottom; 4 to 7 are the rear face in the same order.
        """
        signs = self.tensor.new_tensor(_CORNER_SIGNS)
        offsets = 0.5 * signs * self.size[:, None, :]
        cos, sin = self.yaw.cos()[:, None], self.yaw.sin()[:, None]
        x = cos * offsets[..., 0] - sin * offsets[..., 1]
        y = sin * offsets[..., 0] + cos * offsets[..., 1]
        return torch.stack([x, y, offsets[..., 2]], dim=-1) + self.center[:, None, :]

    def in_range(self, limits: Sequence[float]) -> Tensor:
        """Returns which gravity centres lie strictly within an axis-aligned range.

        Args:
            limits: (x_min, y_min, x_max, y_max) in metres, or with z (x_min, y_min, z_min, x_max, y_max,
                z_max).

        Returns:
            (N,) bool.

        Raises:
            ValueError: for another number of limits.
        """
        if len(limits) not in (4, 6):
            raise ValueError(f"Boxes3D.in_range: {len(limits)} limits, expected 4 (x, y) or 6 (x, y, z)")
        dims = len(limits) // 2
        low, high = self.tensor.new_tensor(limits[:dims]), self.tensor.new_tensor(limits[dims:])
        points = self.center[:, :dims]
        return ((points > low) & (points < high)).all(dim=1)

    def transform(self, matrix: Tensor) -> Boxes3D:
        """Expresses the boxes in another frame.

        Boxes stay upright: of a tilting rotation, centres feel all of it, headings and velocities the
        projection of the rotated vector on the new xy plane (nuscenes-devkit's ``quaternion_yaw`` does the
        same).

        Args:
            matrix: (4, 4) rigid transform from the boxes' frame to the new one.

        Returns:
            New boxes, yaw in [-pi, pi].
        """
        matrix = matrix.to(self.tensor)
        rotation, translation = matrix[:3, :3], matrix[:3, 3]
        out = self.tensor.clone()
        out[:, :3] = self.center @ rotation.T + translation
        heading = torch.stack([self.yaw.cos(), self.yaw.sin()], dim=1) @ rotation[:2, :2].T
        out[:, 6] = torch.atan2(heading[:, 1], heading[:, 0])
        if self.has_velocity:
            out[:, 7:9] = self.velocity @ rotation[:2, :2].T
        return Boxes3D(out)

    def translate(self, offset: Tensor) -> Boxes3D:
        """Returns the boxes moved.

        Args:
            offset: (3,) metres, added to every centre.
        """
        out = self.tensor.clone()
        out[:, :3] += offset.to(out)
        return Boxes3D(out)

    def rotate(self, angle: float) -> Boxes3D:
        """Returns the boxes turned about the z axis of the frame: centres, headings and velocities.

        Args:
            angle: radians, counter-clockwise.
        """
        matrix = torch.eye(4, dtype=self.tensor.dtype, device=self.device)
        cos, sin = math.cos(angle), math.sin(angle)
        matrix[:2, :2] = matrix.new_tensor([[cos, -sin], [sin, cos]])
        return self.transform(matrix)
