"""The sensor rig: six cameras and LIDAR_TOP, at about the positions of nuScenes."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bevkd2.data.synthetic.scene import AXES_QUATERNION, Sensor
from bevkd2.structures import CAMERA_NAMES

Array = npt.NDArray[np.float64]

# Camera: yaw (degrees, counter-clockwise from forward), horizontal field of view (degrees), position in the
# ego frame (metres), and time of its exposure relative to the key frame of the lidar (microseconds; the
# spinning lidar triggers the cameras one after the other).
_MOUNTS: dict[str, tuple[float, float, tuple[float, float, float], int]] = {
    "CAM_FRONT": (0.0, 70.0, (1.70, 0.0, 1.51), -35_000),
    "CAM_FRONT_RIGHT": (-55.0, 70.0, (1.55, -0.49, 1.50), -27_000),
    "CAM_FRONT_LEFT": (55.0, 70.0, (1.52, 0.49, 1.51), -43_000),
    "CAM_BACK": (180.0, 110.0, (0.03, 0.0, 1.58), -10_000),
    "CAM_BACK_LEFT": (110.0, 70.0, (1.03, 0.48, 1.59), -1_000),
    "CAM_BACK_RIGHT": (-110.0, 70.0, (1.02, -0.48, 1.56), -20_000),
}
# Height of the horizon in the image, as a share of the image height from the top.
_HORIZON = 0.45


def euler_quaternion(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> Array:
    """Returns the quaternion w, x, y, z of Rz(yaw) Ry(pitch) Rx(roll), angles in radians."""
    cy, sy = math.cos(yaw / 2), math.sin(yaw / 2)
    cp, sp = math.cos(pitch / 2), math.sin(pitch / 2)
    cr, sr = math.cos(roll / 2), math.sin(roll / 2)
    return np.array(
        [
            cy * cp * cr + sy * sp * sr,
            cy * cp * sr - sy * sp * cr,
            cy * sp * cr + sy * cp * sr,
            sy * cp * cr - cy * sp * sr,
        ]
    )


def make_rig(rng: np.random.Generator, image_size: tuple[int, int]) -> list[Sensor]:
    """Draws the rig of one car: the nominal one with small mounting errors.

    Args:
        rng: generator of the scene.
        image_size: (width, height) in pixels.

    Returns:
        LIDAR_TOP, then the cameras in the order of ``CAMERA_NAMES``.
    """
    # The x axis of the lidar points to the right, with a small tilt, as in nuScenes.
    lidar_angles = np.radians([-90.0, 0.2, -1.3]) + np.radians(0.1) * rng.standard_normal(3)
    rig = [Sensor("LIDAR_TOP", np.array([0.94, 0.0, 1.84]), euler_quaternion(*lidar_angles), None, 0)]
    return rig + [_make_camera(rng, name, image_size) for name in CAMERA_NAMES]


def _make_camera(rng: np.random.Generator, name: str, image_size: tuple[int, int]) -> Sensor:
    yaw, fov, position, delay = _MOUNTS[name]
    width, height = image_size
    focal = 0.5 * width / math.tan(math.radians(fov) / 2) * (1 + 0.005 * rng.standard_normal())
    intrinsics = np.array([[focal, 0.0, width / 2], [0.0, focal, _HORIZON * height], [0.0, 0.0, 1.0]])
    yaw_error, pitch, roll = np.radians(0.3) * rng.standard_normal(3)
    turn = euler_quaternion(math.radians(yaw) + yaw_error, pitch, roll)
    translation = np.array(position) + 0.01 * rng.standard_normal(3)
    return Sensor(name, translation, _multiply(turn, AXES_QUATERNION), intrinsics, delay)


def _multiply(a: Array, b: Array) -> Array:
    """Returns the product of two quaternions w, x, y, z."""
    w = a[0] * b[0] - a[1:] @ b[1:]
    return np.concatenate([[w], a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:])])
