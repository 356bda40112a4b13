"""What a monocular dataset looks like to the mapper and the loader, whatever its layout on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bevkd2.structures import CameraBoxes3D, project_points


@dataclasses.dataclass(frozen=True, eq=False)
class MonoRecord:
    """An image, its calibration and, where it is annotated, its n objects.

    Attributes:
        image_id: unique in the dataset: "000008", or "<sample_token>/CAM_FRONT".
        file_name: path of the PNG or JPEG file.
        height: of the file in pixels.
        width: of the file in pixels.
        cam2img: (4, 4) float64, metres in the rectified camera's frame to pixels of the file.
        boxes: (n, 7 or 9) of the classes to be found, their centres in front of the camera; None where the
            image is not annotated (the three fields below are None then, too).
        labels: (n,) int64, see ``bevkd2.config.class_names``.
        boxes2d: (n, 4) x1, y1, x2, y2, the layout's own image-plane boxes in pixels of the file; None where
            it has none.
        attributes: (n,) int64; None where the layout has none.
        extra: what the sample carries besides, for evaluators.
    """

    image_id: str
    file_name: str
    height: int
    width: int
    cam2img: npt.NDArray[np.float64]
    boxes: CameraBoxes3D | None = None
    labels: Tensor | None = None
    boxes2d: Tensor | None = None
    attributes: Tensor | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


def annotated_objects(record: MonoRecord) -> tuple[CameraBoxes3D, Tensor]:
    """Returns the boxes and labels of an annotated image.

    Args:
        record: of the image.

    Returns:
        boxes: n of them; labels: (n,) int64.

    Raises:
        ValueError: the image is not annotated.
    """
    if record.boxes is None or record.labels is None:
        raise ValueError(
            f"image {record.image_id} has no labels; name a split that is annotated, such as 'train' or 'val'"
        )
    return record.boxes, record.labels


def depths_of(record: MonoRecord) -> Tensor:
    """Returns the depths of an annotated image's objects, as the calibration projects their centres.

    Args:
        record: of the image.

    Returns:
        (n,) metres.

    Raises:
        ValueError: the image is not annotated.
    """
    boxes, _ = annotated_objects(record)
    depths: Tensor = project_points(boxes.center, torch.from_numpy(record.cam2img).to(boxes.tensor))[1]
    return depths


class MonoIndex(Protocol):
    """A split: F images in a fixed order."""

    def __len__(self) -> int: ...

    def record(self, i: int) -> MonoRecord:
        """Returns image ``i``, 0 <= i < F; the caller may change its tensors."""

    def image_size(self, i: int) -> tuple[int, int]:
        """Returns (height, width) of image ``i`` in pixels, without the work of ``record``."""

    def groups(self) -> list[range]:
        """Returns the images that one process must evaluate, in order: [0, F) cut into consecutive ranges."""


class JoinedIndex:
    """Several splits, one after the other."""

    def __init__(self, parts: Sequence[MonoIndex]) -> None:
        """Joins one or more splits."""
        self._parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def record(self, i: int) -> MonoRecord:
        """Returns image ``i`` of all."""
        part, j = self._locate(i)
        return part.record(j)

    def image_size(self, i: int) -> tuple[int, int]:
        """Returns (height, width) of image ``i`` of all."""
        part, j = self._locate(i)
        return part.image_size(j)

    def groups(self) -> list[range]:
        """Returns the groups of every split."""
        starts = [0, *self._ends[:-1].tolist()]
        return [
            range(start + group.start, start + group.stop)
            for start, part in zip(starts, self._parts, strict=True)
            for group in part.groups()
        ]

    def _locate(self, i: int) -> tuple[MonoIndex, int]:
        part = int(np.searchsorted(self._ends, i, side="right"))
        return self._parts[part], i - int(self._ends[part]) + len(self._parts[part])
