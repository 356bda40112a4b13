"""Camera order, poses and projections.

Poses are float64 numpy (global coordinates reach kilometres); what a network reads is torch. Pixel
coordinates are continuous: pixel (i, j) covers [j, j + 1) x [i, i + 1), so resizing an image multiplies them
by the ratio of the sizes, and padding on the right and at the bottom changes nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]

CAMERA_NAMES = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)


def quaternion_to_matrix(rotation: Sequence[float] | Array) -> Array:
    """Returns the rotation matrix of a quaternion.

    Args:
        rotation: (4,) w, x, y, z; normalised here, as nuScenes stores rounded numbers.

    Returns:
        (3, 3) float64.

    Raises:
        ValueError: for a quaternion of zero length or with NaN.
    """
    q = np.asarray(rotation, dtype=np.float64)
    norm = float(np.linalg.norm(q))
    if not norm > 0:
        raise ValueError(f"rotation {q.tolist()} is no quaternion: its length is {norm}, expected 1")
    w, x, y, z = q / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_yaw(rotation: Sequence[float] | Array) -> float:
    """Computes the heading of the rotated x axis on the xy plane.

    Args:
        rotation: (4,) quaternion w, x, y, z; need not be of length 1.

    Returns:
        Radians in (-pi, pi], counter-clockwise from x.

    Raises:
        ValueError: a quaternion of zero length or with NaN.
    """
    matrix = quaternion_to_matrix(rotation)
    return math.atan2(matrix[1, 0], matrix[0, 0])


def pose_matrix(translation: Sequence[float] | Array, rotation: Sequence[float] | Array) -> Array:
    """Returns the rigid transform from a sensor's (or the ego's) frame to its parent.

    Args:
        translation: (3,) metres.
        rotation: (4,) quaternion w, x, y, z.

    Returns:
        (4, 4) float64.
    """
    matrix = np.eye(4)
    matrix[:3, :3] = quaternion_to_matrix(rotation)
    matrix[:3, 3] = translation
    return matrix


def invert_pose(pose: Array) -> Array:
    """Inverts a rigid transform, by the transpose of its rotation.

    Args:
        pose: (4, 4), a rotation and a translation; not checked.

    Returns:
        (4, 4) float64.
    """
    inverse = np.eye(4)
    inverse[:3, :3] = pose[:3, :3].T
    inverse[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return inverse


def scale_intrinsics(intrinsics: Array, scale_x: float, scale_y: float) -> Array:
    """Intrinsics of a resized image.

    Args:
        intrinsics: (..., 3, 3) pinhole matrices in pixels of the original image.
        scale_x: new width / old width.
        scale_y: new height / old height.

    Returns:
        (..., 3, 3) in pixels of the resized image.
    """
    scaled: Array = intrinsics * np.array([scale_x, scale_y, 1.0])[:, None]
    return scaled


def lidar2img_matrix(intrinsics: Array, cam2lidar: Array) -> Array:
    """Returns the projection from LIDAR_TOP to pixels.

    Args:
        intrinsics: (3, 3) pinhole matrix in pixels.
        cam2lidar: (4, 4) rigid transform, ego motion between the two stamps included.

    Returns:
        (4, 4) float64: applied to (x, y, z, 1) in metres it gives (u * depth, v * depth, depth, 1).
    """
    padded = np.eye(4)
    padded[:3, :3] = intrinsics
    return padded @ invert_pose(cam2lidar)


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """Returns a context in which autocast is off; nothing where it is off already, as in an exported graph.

    Args:
        device_type: "cpu" | "cuda".
    """
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def project_points(points: Tensor, lidar2img: Tensor) -> tuple[Tensor, Tensor]:
    """Projects points into images, in the points' dtype whatever autocast does: 16 bits miss by pixels.

    Args:
        points: (..., P, 3) metres, in the frame that ``lidar2img`` starts from.
        lidar2img: (..., 4, 4), leading dimensions broadcast against those of ``points``.

    Returns:
        uv: (..., P, 2) continuous pixel coordinates (x, y). Meaningless where the depth is not positive.
        depth: (..., P) metres along the optical axis; a point is in front of the camera where it is positive.
    """
    rotation, translation = lidar2img[..., :3, :3], lidar2img[..., :3, 3]
    with without_autocast(points.device.type):
        projected = points @ rotation.transpose(-1, -2) + translation.unsqueeze(-2)
    depth = projected[..., 2]
    # Points on or behind the image plane divide by 1e-5 m (BEVFormer's epsilon) instead of by nothing or
    # backwards.
    uv = projected[..., :2] / torch.clamp(depth, min=1e-5).unsqueeze(-1)
    return uv, depth


def unproject_points(uv: Tensor, depth: Tensor, lidar2img: Tensor) -> Tensor:
    """Points from pixels and depths: the inverse of ``project_points``, in their dtype too.

    Args:
        uv: (..., P, 2) continuous pixel coordinates (x, y).
        depth: (..., P) metres, as the projection gives it (a translation in its third row included).
        lidar2img: (..., 4, 4), leading dimensions broadcast against those of ``uv``; a camera's cam2img too.

    Returns:
        (..., P, 3) metres, in the frame that ``lidar2img`` starts from.
    """
    rotation, translation = lidar2img[..., :3, :3], lidar2img[..., :3, 3]
    projected = torch.cat([uv * depth.unsqueeze(-1), depth.unsqueeze(-1)], dim=-1)
    with without_autocast(uv.device.type):
        points3d: Tensor = (projected - translation.unsqueeze(-2)) @ torch.linalg.inv(rotation).transpose(
            -1, -2
        )
        return points3d
