"""The 18 numbers per frame that BEVFormer calls can_bus: where the ego is and how it moves."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevkd2.nuscenes.devkit import NuScenesCanBus
from bevkd2.nuscenes.json_files import is_finite, is_vector, read_json, refuse_dangling, shortened
from bevkd2.runtime.ego import CAN_BUS_SIZE, rotation_vector
from bevkd2.structures import quaternion_to_matrix, quaternion_yaw

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]

_MOTION = slice(7, 16)  # acceleration, rotation rate, velocity: what the CAN bus knows better than poses do

LONGEST_GAP = 1.0
"""Seconds from a key frame to the next pose message; the CAN bus has 50 a second."""

# Bounds that no car reaches, far above what sensors of one measure, and their units.
_LARGEST = {"accel": (1000, "m/s^2"), "rotation_rate": (100, "rad/s"), "vel": (200, "m/s")}

_REMEDY = (
    "unpack the CAN bus expansion again, or remove the file: the motion of the scene then comes from its ego "
    "poses"
)


class CanBus:
    """The CAN bus expansion of a dataset, where it is installed."""

    def __init__(self, root: str | Path) -> None:
        """Looks for ``root``/can_bus.

        Raises:
            FileNotFoundError: it is a link to what does not exist; it may be absent.
        """
        folder = Path(root) / "can_bus"
        refuse_dangling(folder)
        self._api = NuScenesCanBus(dataroot=str(root)) if folder.is_dir() else None

    def has_scene(self, scene_name: str) -> bool:
        """Returns whether there are pose messages of a scene.

        The devkit lists scenes whose messages are missing or wrong; those count as absent.

        Args:
            scene_name: such as "scene-0061"; a name of another form has none.
        """
        if self._api is None or not re.fullmatch(r"scene-[0-9]{4}", scene_name):
            return False
        listed = int(scene_name[-4:]) in self._api.can_blacklist
        return not listed and self._file(scene_name).is_file()

    def motion(self, scene_name: str, timestamps: Array) -> Array:
        """Returns acceleration, rotation rate and velocity at the given times.

        Args:
            scene_name: a scene for which ``has_scene`` holds.
            timestamps: (F,) microseconds.

        Returns:
            (F, 9): per time those of the last pose message at or before it (of the first, if there is none
            before).

        Raises:
            ValueError: the file of the scene is damaged, or none of its messages is within ``LONGEST_GAP`` of
                one of the times. Where some times have none, a warning says so.
        """
        path = self._file(scene_name)
        messages = _pose_messages(path)
        times = np.array([message["utime"] for message in messages], dtype=np.float64)
        _check_times(path, np.sort(times), timestamps)
        rows = np.array([[*m["accel"], *m["rotation_rate"], *m["vel"]] for m in messages], dtype=np.float64)
        order = np.argsort(times, kind="stable")
        places = np.maximum(np.searchsorted(times[order], timestamps, side="right") - 1, 0)
        nearest: Array = rows[order[places]]
        return nearest

    def _file(self, scene_name: str) -> Path:
        assert self._api is not None
        return Path(self._api.can_dir) / f"{scene_name}_pose.json"


def _check_times(path: Path, times: Array, timestamps: Array) -> None:
    """Compares the times of M messages, in order, with those of F key frames; both in microseconds."""
    behind = np.searchsorted(times, timestamps).clip(1 - len(times), len(times) - 1)
    gaps = np.abs(times[[behind - 1, behind]] - timestamps).min(axis=0) / 1e6
    far = gaps > LONGEST_GAP
    if far.all():
        raise ValueError(
            f"{path}: utime is {times[0]:.0f} to {times[-1]:.0f}, but the "
            f"key frames of the scene are at {timestamps.min()} to {timestamps.max()}, expected messages "
            f"within {LONGEST_GAP:g} s of them, in microseconds: the file is of another scene or in another "
            f"unit; {_REMEDY}"
        )
    if far.any():
        logger.warning(
            "%s: %d of %d key frames of the scene have no pose message within %g s (timestamp %d is %.1f s "
            "from the next), and get the motion of the last one before; %s",
            path,
            far.sum(),
            len(far),
            LONGEST_GAP,
            timestamps[gaps.argmax()],
            gaps.max(),
            _REMEDY,
        )


def _pose_messages(path: Path) -> list[dict[str, Any]]:
    """Returns the pose messages of a scene.

    Raises:
        ValueError: the file is no list of one message or more, or a message lacks a number or has one that
            no car reaches.
    """
    messages = read_json(path, _REMEDY)
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{path} holds {shortened(messages)}, expected a list of pose messages; {_REMEDY}")
    for place, message in enumerate(messages):
        fields = message if isinstance(message, dict) else {}
        if not is_finite(fields.get("utime")):
            raise ValueError(
                f"{path}, message {place}: {shortened(message)} has no number utime (in microseconds); "
                f"{_REMEDY}"
            )
        for name, (largest, unit) in _LARGEST.items():
            numbers: Any = fields.get(name)
            if not (is_vector(numbers, 3) and max(map(abs, numbers)) <= largest):
                raise ValueError(
                    f"{path}, message {place} (utime {fields['utime']}): {name} is {shortened(numbers)}, "
                    f"expected three finite numbers from -{largest} to {largest} {unit}; {_REMEDY}"
                )
    return messages


def can_bus_vectors(translations: Array, rotations: Array, motion: Array) -> Array:
    """Assembles the 18-vectors of a scene.

    Args:
        translations: (F, 3) ego positions in the global frame, metres.
        rotations: (F, 4) ego quaternions w, x, y, z.
        motion: (F, 9) acceleration (m/s^2), rotation rate (rad/s), velocity (m/s) in the ego frame.

    Returns:
        (F, 18) absolute values: position, quaternion, motion, yaw in radians in [0, 2 pi), yaw in degrees.
    """
    out = np.zeros((len(translations), CAN_BUS_SIZE))
    out[:, :3] = translations
    out[:, 3:7] = rotations
    out[:, _MOTION] = motion
    yaw = np.array([quaternion_yaw(q) for q in rotations]) % (2 * math.pi)
    out[:, 16] = yaw
    out[:, 17] = np.rad2deg(yaw)
    return out


def motion_from_poses(translations: Array, rotations: Array, timestamps: Array) -> Array:
    """Returns acceleration, rotation rate and velocity of the ego by finite differences of its poses.

    The differences look back, as those of a car on the road must. A scene's first frame has nothing behind
    it: it takes over the second frame's velocity and rotation rate, and its acceleration is zero, as is the
    second's. A scene of one frame gets zeros.

    Args:
        translations: (F, 3) ego positions in the global frame, metres, in order of time.
        rotations: (F, 4) ego quaternions w, x, y, z.
        timestamps: (F,) microseconds.

    Returns:
        (F, 9): acceleration (m/s^2, without gravity), rotation rate (rad/s), velocity (m/s), in the ego frame
        (x forward, y left, z up).
    """
    count = len(translations)
    if count < 2:
        return np.zeros((count, 9))
    matrices = np.stack([quaternion_to_matrix(q) for q in rotations])
    dt = np.diff(timestamps.astype(np.float64))[:, None] * 1e-6
    velocity = _first_repeated(np.diff(translations, axis=0) / dt)
    acceleration = np.concatenate([np.zeros((1, 3)), np.diff(velocity, axis=0) / dt])
    relative = np.einsum("fji,fjk->fik", matrices[:-1], matrices[1:])  # the turn, seen from the earlier ego
    rate = _first_repeated(np.stack([rotation_vector(turn) for turn in relative]) / dt)
    into_ego = matrices.transpose(0, 2, 1)
    return np.concatenate(
        [np.einsum("fij,fj->fi", into_ego, acceleration), rate, np.einsum("fij,fj->fi", into_ego, velocity)],
        axis=1,
    )


def _first_repeated(rows: Array) -> Array:
    return np.concatenate([rows[:1], rows])
