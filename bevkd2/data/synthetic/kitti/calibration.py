"""The calibration of a frame: KITTI's rig, with four cameras, a lidar and an inertial unit."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import numpy.typing as npt

from bevkd2.data.synthetic.kitti.config import KittiWorldConfig
from bevkd2.data.synthetic.scene import AXES_QUATERNION, Sensor
from bevkd2.structures import pose_matrix

Array = npt.NDArray[np.float64]

CAMERA_HEIGHT = 1.65
"""Height of camera 0 above the ground in metres, as in KITTI; its optical axis is level, along the road."""

# Principal point of camera 2, as shares of width and height: KITTI's (609.6, 172.9) in 1242 x 375.
_PRINCIPAL_POINT = np.array([0.4908, 0.4609])
# x, y, z in metres from the frame of camera 0 to those of cameras 0 to 3: K^-1 of the last columns of
# KITTI's P0 to P3 (2011_09_26).
_OFFSETS = np.array(
    [[0.0, 0.0, 0.0], [-0.5372, 0.0, 0.0], [0.0598, -0.0004, 0.0027], [-0.4729, 0.0024, 0.0027]]
)
# Rotation vector in radians of R0_rect, and positions in metres, near those of KITTI's rig.
_RECTIFICATION = np.array([0.0043, -0.0074, -0.0099])
_LIDAR_IN_CAMERA = np.array([0.0, -0.08, -0.27])
_IMU_IN_LIDAR = np.array([-0.81, 0.32, -0.80])


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """The content of a calib file. "Camera" is the rectified camera 0: x right, y down, z forward.

    Attributes:
        projections: (4, 3, 4) P0 to P3, from the camera's frame in metres to pixels of each image.
        rectification: (3, 3) R0_rect, from the unrectified camera 0 to the camera.
        lidar_to_camera: (3, 4) Tr_velo_to_cam, from the lidar to the unrectified camera 0.
        imu_to_lidar: (3, 4) Tr_imu_to_velo.
    """

    projections: Array
    rectification: Array
    lidar_to_camera: Array
    imu_to_lidar: Array

    @property
    def cam2img(self) -> Array:
        """Returns (4, 4) P2 with the row 0 0 0 1: from the camera's frame to pixels of image_2."""
        return np.concatenate([self.projections[2], [[0.0, 0.0, 0.0, 1.0]]])

    def camera(self) -> Sensor:
        """Returns camera 2, which takes image_2, for the renderer.

        The ego's frame is on the ground below camera 0: x forward, y left, z up.
        """
        right, down, forward = -_OFFSETS[2]
        position = np.array([forward, -right, CAMERA_HEIGHT - down])
        return Sensor("image_2", position, AXES_QUATERNION, self.projections[2, :, :3], 0)

    def to_text(self) -> str:
        """Returns the calib file, with KITTI's names and number format."""
        matrices = {f"P{i}": projection for i, projection in enumerate(self.projections)}
        matrices["R0_rect"] = self.rectification
        matrices["Tr_velo_to_cam"] = self.lidar_to_camera
        matrices["Tr_imu_to_velo"] = self.imu_to_lidar
        lines = [f"{key}: " + " ".join(f"{v:.12e}" for v in m.reshape(-1)) for key, m in matrices.items()]
        return "\n".join(lines) + "\n\n"


def make_calibration(rng: np.random.Generator, config: KittiWorldConfig) -> Calibration:
    """Draws the calibration of a frame; frames differ in focal length.

    Args:
        rng: generator of the frame.
        config: the world.

    Returns:
        The calibration.
    """
    width = config.image_size[0]
    focal = 0.5 * width / math.tan(math.radians(config.horizontal_fov) / 2)
    focal *= 1 + config.focal_sigma * rng.standard_normal()
    cx, cy = _PRINCIPAL_POINT * config.image_size
    intrinsics = np.array([[focal, 0.0, cx], [0.0, focal, cy], [0.0, 0.0, 1.0]])
    projections = np.stack([intrinsics @ np.column_stack([np.eye(3), t]) for t in _OFFSETS])
    rectification = np.asarray(cv2.Rodrigues(_RECTIFICATION)[0], dtype=np.float64)
    # The rectified lidar is level too.
    axes = pose_matrix(np.zeros(3), AXES_QUATERNION)[:3, :3].T
    lidar_to_camera = rectification.T @ np.column_stack([axes, _LIDAR_IN_CAMERA])
    return Calibration(
        projections, rectification, lidar_to_camera, np.column_stack([np.eye(3), _IMU_IN_LIDAR])
    )
