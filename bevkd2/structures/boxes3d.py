"""Oriented 3D boxes, batched in one tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

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


def wrap_angle(angle: Tensor) -> Tensor:
    """Wrap angles into [-pi, pi).

    Args:
        angle: angles in radians, any shape.

    Returns:
        The same angles modulo 2 pi, in [-pi, pi), shape and dtype kept.
    """
    wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    # In floating point the remainder can round up to the full period.
    return torch.where(wrapped >= math.pi, -torch.full_like(wrapped, math.pi), wrapped)


class Boxes3D:
    """N oriented boxes with an upright axis, in one metric frame with z up.

    For nuScenes the frame is LIDAR_TOP: x right, y forward, z up.

    Attributes:
        tensor: (N, 7) or (N, 9) floating point: x, y, z of the gravity centre, length (along the heading),
            width, height in metres, yaw in radians counter-clockwise about z from +x, and with nine columns
            the velocity vx, vy in m/s.
    """

    def __init__(self, tensor: Tensor) -> None:
        """Wrap a tensor of boxes; it is not copied.

        Args:
            tensor: (N, 7) or (N, 9), see the class.

        Raises:
            ValueError: for another shape, or a tensor that is not of a floating point type.
        """
        if tensor.ndim != 2 or tensor.shape[1] not in (7, 9):
            raise ValueError(
                f"Boxes3D: the tensor is {tuple(tensor.shape)}, expected (N, 7) or (N, 9): "
                "x, y, z, length, width, height, yaw[, vx, vy]"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"Boxes3D: the tensor is {tensor.dtype}, expected a floating point type")
        self.tensor = tensor

    @classmethod
    def empty(cls, box_dim: int = 9, dtype: torch.dtype = torch.float32) -> Boxes3D:
        """Zero boxes with `box_dim` (7 or 9) columns on the CPU."""
        return cls(torch.zeros((0, box_dim), dtype=dtype))

    @classmethod
    def cat(cls, boxes: Sequence[Boxes3D]) -> Boxes3D:
        """Concatenate boxes of the same layout.

        Args:
            boxes: one or more Boxes3D with the same number of columns.

        Returns:
            All boxes, in order.

        Raises:
            ValueError: for an empty sequence or mixed layouts.
        """
        columns = sorted({b.tensor.shape[1] for b in boxes})
        if len(columns) != 1:
            raise ValueError(
                f"Boxes3D.cat: boxes with {columns or 'no'} columns, expected one layout, 7 or 9"
            )
        return cls(torch.cat([b.tensor for b in boxes]))

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Boxes3D:
        """Select boxes by an integer (one box, still batched), a slice, an index tensor or a boolean mask."""
        if isinstance(index, int):
            return Boxes3D(self.tensor[index].unsqueeze(0))
        return Boxes3D(self.tensor[index])

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensor)

    def __repr__(self) -> str:
        return f"Boxes3D(num_boxes={len(self)}, columns={self.tensor.shape[1]}, device={self.tensor.device})"

    def to(self, *args: torch.device | torch.dtype | str, **kwargs: bool) -> Boxes3D:
        """Move or cast like `Tensor.to`."""
        return Boxes3D(self.tensor.to(*args, **kwargs))  # type: ignore[call-overload]

    def clone(self) -> Boxes3D:
        """A copy with its own memory."""
        return Boxes3D(self.tensor.clone())

    @property
    def device(self) -> torch.device:
        """Where the boxes live."""
        return self.tensor.device

    @property
    def has_velocity(self) -> bool:
        """Whether there are nine columns."""
        return self.tensor.shape[1] == 9

    @property
    def center(self) -> Tensor:
        """(N, 3) gravity centres in metres."""
        return self.tensor[:, :3]

    @property
    def bottom_center(self) -> Tensor:
        """(N, 3) centres of the bottom faces in metres."""
        drop = torch.zeros_like(self.center)
        drop[:, 2] = self.tensor[:, 5] / 2
        return self.center - drop

    @property
    def size(self) -> Tensor:
        """(N, 3) length, width, height in metres."""
        return self.tensor[:, 3:6]

    @property
    def yaw(self) -> Tensor:
        """(N,) heading in radians."""
        return self.tensor[:, 6]

    @property
    def velocity(self) -> Tensor:
        """(N, 2) vx, vy in m/s.

        Raises:
            ValueError: where the boxes have seven columns.
        """
        if not self.has_velocity:
            raise ValueError("Boxes3D.velocity: these boxes have 7 columns, no velocity; build them with 9")
        return self.tensor[:, 7:9]

    def corners(self) -> Tensor:
        """The eight corners, in nuscenes-devkit's order.

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
        """Which gravity centres lie strictly within an axis-aligned range.

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
        """Express the boxes in another frame.

        Boxes stay upright: of a tilting rotation, centres feel all of it, headings and velocities the
        projection of the rotated vector on the new xy plane (nuscenes-devkit's `quaternion_yaw` does the
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
        """Move every box by `offset`, (3,) in metres."""
        out = self.tensor.clone()
        out[:, :3] += offset.to(out)
        return Boxes3D(out)

    def rotate(self, angle: float) -> Boxes3D:
        """Turn centres, headings and velocities about the z axis of the frame by `angle` in radians."""
        matrix = torch.eye(4, dtype=self.tensor.dtype, device=self.device)
        cos, sin = math.cos(angle), math.sin(angle)
        matrix[:2, :2] = matrix.new_tensor([[cos, -sin], [sin, cos]])
        return self.transform(matrix)
