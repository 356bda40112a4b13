"""The objects that every view draws: boxes with labels and, for predictions, scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bevkd2.structures import Boxes3D, CameraBoxes3D

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
"""(10, 3) RGB; ``class_palette`` chooses from them."""


def class_palette(num_classes: int) -> Image:
    """Chooses colours of ``CLASS_COLORS`` that are as different as possible.

    Args:
        num_classes: K; beyond ten, classes share colours.

    Returns:
        (min(K, 10), 3) RGB.
    """
    count = min(num_classes, len(CLASS_COLORS))
    palette: Image = CLASS_COLORS[np.arange(count) * len(CLASS_COLORS) // max(count, 1)]
    return palette


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnObjects:
    """Annotated or predicted objects of one frame.

    Attributes:
        boxes: N boxes with z up: in the ego frame of a multi-view sample (nuScenes: LIDAR_TOP), or those of
            a camera turned upright (x right, y forward; ``CameraBoxes3D.upright``).
        labels: (N,) class labels.
        scores: (N,) in 0..1; None for annotations.
        colors: (K, 3) RGB in the order of the labels; label k has the colour of row k % K.
    """

    boxes: Boxes3D
    labels: npt.NDArray[np.int64]
    scores: Array | None = None
    colors: Image = dataclasses.field(default_factory=lambda: CLASS_COLORS, repr=False)

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.boxes):
            raise ValueError(
                f"DrawnObjects: {len(self.boxes)} boxes with {len(self.labels)} labels, expected as many"
            )
        if self.scores is not None and len(self.scores) != len(self.boxes):
            raise ValueError(
                f"DrawnObjects: {len(self.boxes)} boxes with {len(self.scores)} scores, expected as many"
            )

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> DrawnObjects:
        """Builds the objects of a sample's annotations or a model's output.

        Args:
            record: "boxes" (Boxes3D, or CameraBoxes3D, which are turned upright) and "labels" (N,), and for
                predictions "scores" (N,). Without "boxes" there are no objects.

        Returns:
            The objects, on the CPU.
        """
        if "boxes" not in record:
            return cls(Boxes3D.empty(), np.zeros(0, dtype=np.int64))
        boxes = record["boxes"]
        upright = boxes.upright() if isinstance(boxes, CameraBoxes3D) else boxes
        scores = record.get("scores")
        return cls(
            Boxes3D(upright.tensor.detach().cpu().double()),
            _to_numpy(record["labels"]),
            None if scores is None else _to_numpy(scores),
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, threshold: float) -> DrawnObjects:
        """Returns the objects with a score of at least a threshold; annotations are all kept.

        Args:
            threshold: in [0, 1].
        """
        if self.scores is None:
            return self
        return self.only(self.scores >= threshold)

    def only(self, mask: npt.NDArray[np.bool_]) -> DrawnObjects:
        """Returns the objects of a mask.

        Args:
            mask: (N,) bool, true for those that are kept.
        """
        keep = np.nonzero(mask)[0]
        scores = None if self.scores is None else self.scores[keep]
        return DrawnObjects(self.boxes[torch.from_numpy(keep)], self.labels[keep], scores, self.colors)

    def by_score(self) -> DrawnObjects:
        """Returns the same objects, the lowest score first, so that higher ones are drawn over it."""
        if self.scores is None:
            return self
        order = np.argsort(self.scores, kind="stable")
        boxes = self.boxes[torch.from_numpy(order)]
        return DrawnObjects(boxes, self.labels[order], self.scores[order], self.colors)

    def in_class_colors(self, class_names: Sequence[str]) -> DrawnObjects:
        """Returns the same objects in the colours of ``class_palette``.

        Args:
            class_names: in the order of the labels.

        Raises:
            ValueError: a label is not the index of a class.
        """
        if len(self) and not 0 <= self.labels.min() <= self.labels.max() < len(class_names):
            raise ValueError(
                f"DrawnObjects: labels are {sorted(set(self.labels.tolist()))}, expected 0 to "
                f"{len(class_names) - 1}: class_names are {', '.join(class_names)}"
            )
        return dataclasses.replace(self, colors=class_palette(len(class_names)))

    def corners(self) -> Array:
        """Returns (N, 8, 3) metres, in the order of ``Boxes3D.corners``: the front face first."""
        return self.boxes.corners().double().numpy()

    def color(self, index: int) -> tuple[int, int, int]:
        """Returns the RGB colour of an object's class, 0 to 255 each.

        Args:
            index: the object's; colours repeat where there are more classes than colours.
        """
        r, g, b = self.colors[self.labels[index] % len(self.colors)].tolist()
        return r, g, b


def _to_numpy(values: Any) -> npt.NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
