"""Runs an exported multi-view detector on a stream of key frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevkd2.runtime.ego import EgoMotion
from bevkd2.runtime.graph import (
    METADATA_KEY,
    RUNTIMES,
    Detections,
    Fields,
    Graph,
    check_fields,
    check_ports,
    check_scores,
    is_finite,
)

Array = npt.NDArray[Any]

_FIELDS: dict[str, Fields] = {"post_center_range": list, "score_threshold": (int, float), "cameras": list}
_INPUTS = ("images", "lidar2img", "can_bus", "previous_can_bus", "previous_bev", "has_previous")
_OUTPUTS = ("boxes", "scores", "labels", "bev")
_LEAST_THRESHOLD = 0.01


class MultiViewRuntime:
    """Detects objects around the car, frame after frame, and keeps the state between frames.

    The bird's-eye view of the frame before is used where that frame is of the same scene and earlier, as in
    the detector's own evaluation.
    """

    def __init__(self, graph: Graph) -> None:
        """Wraps a graph of the kind ``multi_view``; :func:`bevkd2.runtime.load` calls it."""
        self.graph, self.description = graph, graph.description
        check_fields(self.description, _FIELDS, graph.path)
        check_ports(self.description, _INPUTS, _OUTPUTS, graph.path)
        limits = self.description["post_center_range"]
        if len(limits) != 6 or not all(map(is_finite, limits)):
            raise ValueError(
                f"{graph.path}: post_center_range of the metadata {METADATA_KEY!r} is {limits!r:.100}, "
                "expected six finite numbers: least and largest x, y, z in metres; export the file again"
            )
        self._ego = EgoMotion()
        self.reset()

    def reset(self) -> None:
        """Forgets the frames before: the next one is the first of a scene."""
        self._ego.reset()
        self._scene: str | None = None
        self._time = 0
        self._bev = np.zeros((1, *self._shape("previous_bev")), dtype=np.float32)
        self._can_bus = np.zeros((1, *self._shape("previous_can_bus")), dtype=np.float64)

    def detect(
        self,
        images: Array,
        lidar2img: Array,
        *,
        timestamp: int,
        scene: str = "",
        ego2global: Array | None = None,
        motion: Array | None = None,
        can_bus: Array | None = None,
    ) -> Detections:
        """Runs the next key frame.

        Args:
            images: uint8 (N, 3, H, W), RGB, of the graph's size, in the order of the description's
                ``cameras``.
            lidar2img: (N, 4, 4), metres in LIDAR_TOP at the frame's time to (u * depth, v * depth, depth, 1),
                pixels of ``images``.
            timestamp: microseconds.
            scene: a name; another one than the last frame's, or a time that is not later, begins a new scene.
            ego2global: (4, 4) float64, the ego's pose; or give ``can_bus``.
            motion: see :meth:`bevkd2.runtime.EgoMotion.vector`.
            can_bus: (18,) float64, as the description's input ``can_bus`` says, instead of the pose.

        Returns:
            The objects in the frame that the description names.

        Raises:
            ValueError: neither or both of ``ego2global`` and ``can_bus``, an input of another shape or type,
                or scores that are NaN.
        """
        if (ego2global is None) == (can_bus is None):
            raise ValueError("give either ego2global or can_bus: where the ego is decides how the past lies")
        continues = scene == self._scene and timestamp > self._time
        if not continues:
            self._ego.reset()
        vector = can_bus if ego2global is None else self._ego.vector(ego2global, timestamp, motion)
        assert vector is not None
        now = np.asarray(vector, dtype=np.float64)[None]
        outputs = self.graph.run(
            {
                "images": np.asarray(images)[None],
                "lidar2img": np.asarray(lidar2img, dtype=np.float32)[None],
                "can_bus": now,
                "previous_can_bus": self._can_bus if continues else now,
                "previous_bev": self._bev,
                "has_previous": np.array([continues]),
            }
        )
        check_scores(outputs["scores"], self.graph.path)
        self._scene, self._time = scene, timestamp
        self._bev, self._can_bus = outputs["bev"], now
        return self.decode({name: outputs[name][0] for name in ("boxes", "scores", "labels")})

    def decode(self, found: dict[str, Array]) -> Detections:
        """Drops what is out of range or not above the threshold from the outputs of one frame.

        Args:
            found: the graph's outputs by name, without their batch dimension: ``boxes`` (n, 9),
                ``scores`` (n,) and ``labels`` (n,).

        Returns:
            The detections that are left, in the graph's order.
        """
        low, high = np.split(np.array(self.description["post_center_range"], dtype=np.float32), 2)
        center = found["boxes"][:, :3]
        kept = ((center >= low) & (center <= high)).all(1)
        kept &= _above(found["scores"], self.description["score_threshold"])
        return Detections(**{name: values[kept] for name, values in found.items()})

    def _shape(self, name: str) -> tuple[int, ...]:
        (port,) = (port for port in self.description["inputs"] if port["name"] == name)
        return tuple(port["shape"])


def _above(scores: Array, threshold: float) -> Array:
    """Returns which scores pass; where none does, the threshold is lowered by tenths, as published."""
    if threshold <= 0:
        return np.ones(scores.shape, dtype=bool)
    mask = scores > np.float32(threshold)
    while not mask.any():
        threshold *= 0.9
        if threshold < _LEAST_THRESHOLD:
            return np.ones(scores.shape, dtype=bool)
        mask = scores >= np.float32(threshold)
    passed: Array = mask
    return passed


RUNTIMES["multi_view"] = MultiViewRuntime
