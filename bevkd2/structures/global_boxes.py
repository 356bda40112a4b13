"""Boxes in nuscenes-devkit's layout (global frame, w l h, quaternion) and the way to Boxes3D and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bevkd2.structures.boxes3d import Boxes3D
from bevkd2.structures.cameras import quaternion_to_matrix

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GlobalBoxes:
    """N boxes as nuScenes tables and results store them, float64.

    Attributes:
        translation: (N, 3) gravity centres in the global frame, metres.
        size: (N, 3) width, length, height in metres. (Boxes3D has length before width.)
        rotation: (N, 4) quaternions w, x, y, z from the box's axes (x along its length) to the global frame.
        velocity: (N, 2) global vx, vy in m/s; NaN where unknown.
    """

    translation: Array
    size: Array
    rotation: Array
    velocity: Array

    def __len__(self) -> int:
        return len(self.translation)


def from_global(boxes: GlobalBoxes, lidar2global: Array) -> Boxes3D:
    """Expresses the devkit's boxes in the lidar frame.

    The heading is that of the box's length axis projected on the lidar's xy plane: what little tilt there is
    between the frames is dropped, as in the devkit's ``quaternion_yaw``. NaN velocities stay NaN.

    Args:
        boxes: N boxes in the global frame.
        lidar2global: (4, 4) float64 pose of LIDAR_TOP.

    Returns:
        Boxes3D (N, 9), float32.
    """
    rotation = lidar2global[:3, :3]
    n = len(boxes)
    out = np.zeros((n, 9))
    out[:, :3] = (boxes.translation - lidar2global[:3, 3]) @ rotation
    out[:, 3:6] = boxes.size[:, [1, 0, 2]]
    headings = np.array([quaternion_to_matrix(q)[:, 0] for q in boxes.rotation]).reshape(n, 3) @ rotation
    out[:, 6] = np.arctan2(headings[:, 1], headings[:, 0])
    out[:, 7:9] = boxes.velocity @ rotation[:2, :2]
    return Boxes3D(torch.from_numpy(out).float())


def to_global(boxes: Boxes3D, lidar2global: Array) -> GlobalBoxes:
    """Expresses boxes of the lidar frame in the devkit's layout.

    Args:
        boxes: N boxes in the lidar frame; without velocity columns they get velocity zero.
        lidar2global: (4, 4) float64 pose of LIDAR_TOP.

    Returns:
        N boxes in the global frame; rotations are unit quaternions that contain the lidar's tilt.
    """
    values = boxes.tensor.detach().cpu().double().numpy()
    rotation = lidar2global[:3, :3]
    velocity = values[:, 7:9] if boxes.has_velocity else np.zeros((len(values), 2))
    return GlobalBoxes(
        translation=values[:, :3] @ rotation.T + lidar2global[:3, 3],
        size=values[:, [4, 3, 5]],
        rotation=_multiply_yaw(_matrix_to_quaternion(rotation), values[:, 6]),
        velocity=velocity @ rotation[:2, :2].T,
    )


def _multiply_yaw(quaternion: Array, yaw: Array) -> Array:
    """Quaternion products q * (cos(yaw / 2), 0, 0, sin(yaw / 2)): (4,) and (N,) to (N, 4)."""
    w, x, y, z = quaternion
    c, s = np.cos(yaw / 2), np.sin(yaw / 2)
    return np.stack([w * c - z * s, x * c + y * s, y * c - x * s, z * c + w * s], axis=1)


def _matrix_to_quaternion(matrix: Array) -> Array:
    """Unit quaternion w, x, y, z of a (3, 3) rotation.

    The quaternion is the eigenvector of the largest eigenvalue of a symmetric 4 x 4 matrix: Bar-Itzhack, "New
    Method for Extracting the Quaternion from a Rotation Matrix", 2000, eq. 13-14. It has no special cases
    near a half turn.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = matrix
    k = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
    _, vectors = np.linalg.eigh(k)
    return vectors[:, -1]
