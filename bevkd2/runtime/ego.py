"""The 18 numbers of a frame that BEVFormer calls can_bus, from the poses of a driving car."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

CAN_BUS_SIZE = 18
"""Numbers of a frame's vector."""


class EgoMotion:
    """Turns a stream of poses into vectors, by finite differences that look back.

    The first frame of a scene has velocity, acceleration and rotation rate 0, since nothing is known of them;
    a car that measures them gives them (``motion``).
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets the frames before: a new scene begins."""
        self._pose: Array | None = None
        self._velocity: Array | None = None
        self._time = 0

    def vector(self, ego2global: Array, timestamp: int, motion: Array | None = None) -> Array:
        """Returns the vector of the scene's next frame.

        Args:
            ego2global: (4, 4) float64, metres.
            timestamp: microseconds.
            motion: (9,) acceleration (m/s^2), rotation rate (rad/s) and velocity (m/s) in the ego's frame (x
                forward, y left, z up), where they are measured.

        Returns:
            (18,) float64: position, quaternion w x y z, motion, yaw (rad) in [0, 2 pi), yaw (degrees).
        """
        pose = np.asarray(ego2global, dtype=np.float64)
        derived = self._differences(pose, timestamp)
        yaw = math.atan2(pose[1, 0], pose[0, 0]) % (2 * math.pi)
        moves = derived if motion is None else np.asarray(motion, dtype=np.float64)
        return np.concatenate([pose[:3, 3], quaternion(pose), moves, [yaw, math.degrees(yaw)]])

    def _differences(self, pose: Array, timestamp: int) -> Array:
        velocity = acceleration = rate = np.zeros(3)
        if self._pose is not None and timestamp > self._time:
            seconds = (timestamp - self._time) * 1e-6
            velocity = (pose[:3, 3] - self._pose[:3, 3]) / seconds
            rate = rotation_vector(self._pose[:3, :3].T @ pose[:3, :3]) / seconds
            if self._velocity is not None:
                acceleration = (velocity - self._velocity) / seconds
            self._velocity = velocity
        self._pose, self._time = pose, timestamp
        into_ego = pose[:3, :3].T
        return np.concatenate([into_ego @ acceleration, rate, into_ego @ velocity])


def quaternion(pose: Array) -> Array:
    """Returns (4,) w, x, y, z with w >= 0 of the rotation of a (4, 4) pose."""
    m = pose[:3, :3]
    # The largest of the four numbers is computed first, so that nothing is divided by one near 0.
    squares = np.array([np.trace(m), *(2 * np.diag(m) - np.trace(m))]) + 1
    largest = int(np.argmax(squares))
    symmetric, skew = m + m.T, (m - m.T)[[2, 0, 1], [1, 2, 0]]
    if largest == 0:
        q = np.concatenate([squares[:1], skew])
    else:
        axis = largest - 1
        q = np.concatenate([skew[[axis]], symmetric[axis]])
        q[largest] = squares[largest]
    unit: Array = q / np.linalg.norm(q) * (1 if q[0] >= 0 else -1)
    return unit


def rotation_vector(matrix: Array) -> Array:
    """Returns the (3,) axis of a rotation times its angle in radians.

    Args:
        matrix: (3, 3) rotation by less than half a turn; for half a turn the formula gives no axis.
    """
    skew = (matrix - matrix.T)[[2, 0, 1], [1, 2, 0]] / 2
    sine = float(np.linalg.norm(skew))
    if sine == 0.0:
        return np.zeros(3)
    vector: Array = skew / sine * math.atan2(sine, (np.trace(matrix) - 1) / 2)
    return vector
