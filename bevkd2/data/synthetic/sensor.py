"""A calibrated sensor, as the renderer takes it."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from bevkd2.structures import pose_matrix

Array = npt.NDArray[np.float64]

AXES_QUATERNION = np.array([0.5, -0.5, 0.5, -0.5])
"""From camera axes (x right, y down, z forward) to ego axes (x forward, y left, z up), for a camera that
looks forward: a third of a turn about (-1, 1, -1)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sensor:
    """One calibrated sensor.

    Attributes:
        channel: its name: nuScenes's channel, or KITTI's folder.
        translation: (3,) position in the ego frame, metres.
        rotation: (4,) quaternion w, x, y, z from the sensor's frame to the ego's.
        intrinsics: (3, 3) pinhole matrix in pixels; None for the lidar.
        delay: microseconds from the key frame to this sensor's exposure.
    """

    channel: str
    translation: Array
    rotation: Array
    intrinsics: Array | None
    delay: int

    @property
    def sensor2ego(self) -> Array:
        """(4, 4) rigid transform."""
        return pose_matrix(self.translation, self.rotation)
