"""Boxes with labels and, for predictions, scores: what the views draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bevkd2.structures import Boxes3D

Image = npt.NDArray[np.uint8]
"""(H, W, 3) RGB."""
Array = npt.NDArray[np.float64]

CLASS_COLORS: Image = np.array(
    [
        [230, 57, 60],
        [245, 130, 32],
        [196, 176, 0],
        [60, 170, 60],
        [0, 150, 125],
        [0, 165, 205],
        [50, 105, 235],
        [110, 70, 220],
        [190, 60, 215],
        [225, 55, 145],
    ],
    dtype=np.uint8,
)
"""(10, 3) RGB, in the order of the class labels; further labels begin again."""


@dataclasses.dataclass(frozen=True, eq=False)
class Objects:
    """Annotated or predicted objects of one frame.

    Attributes:
        boxes: N boxes in the LIDAR_TOP frame.
        labels: (N,) class labels.
        scores: (N,) in 0..1; None for annotations.
    """

    boxes: Boxes3D
    labels: npt.NDArray[np.int64]
    scores: Array | None = None

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.boxes):
            raise ValueError(
                f"Objects: {len(self.boxes)} boxes with {len(self.labels)} labels, expected as many"
            )
        if self.scores is not None and len(self.scores) != len(self.boxes):
            raise ValueError(
                f"Objects: {len(self.boxes)} boxes with {len(self.scores)} scores, expected as many"
            )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Objects:
        """From a sample's annotations or a model's output.

        Args:
            record: "boxes" Boxes3D and "labels" (N,), and for predictions "scores" (N,). Without "boxes"
                there are no objects.

        Returns:
            The objects, on the CPU.
        """
        if "boxes" not in record:
            return cls(Boxes3D.empty(), np.zeros(0, dtype=np.int64))
        boxes = Boxes3D(record["boxes"].tensor.detach().cpu().double())
        scores = record.get("scores")
        return cls(boxes, _to_numpy(record["labels"]), None if scores is None else _to_numpy(scores))

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, threshold: float) -> Objects:
        """Those with a score of at least `threshold`; annotations are all kept."""
        if self.scores is None:
            return self
        keep = np.nonzero(self.scores >= threshold)[0]
        return Objects(self.boxes[torch.from_numpy(keep)], self.labels[keep], self.scores[keep])

    def corners(self) -> Array:
        """(N, 8, 3) metres, in the order of `Boxes3D.corners`: the front face first."""
        return self.boxes.corners().double().numpy()

    def color(self, index: int) -> tuple[int, int, int]:
        """RGB of an object's class."""
        r, g, b = CLASS_COLORS[self.labels[index] % len(CLASS_COLORS)].tolist()
        return r, g, b


def _to_numpy(values: Any) -> npt.NDArray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
