"""What a data format says of stored detections: ``DataFormat.stored_frames`` returns one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bevkd2.data.image_files import read_image
from bevkd2.data.mono.index import MonoIndex, annotated_objects
from bevkd2.structures.matches import FrameMatches, ground_distances, match_by_distance
from bevkd2.visualization.comparison_view import FrameView
from bevkd2.visualization.mono_view import fitting_extent
from bevkd2.visualization.objects import DrawnObjects, Image

MATCH_DISTANCE = 2.0
"""Metres: nuScenes' distance of true positives."""


@dataclass(frozen=True)
class Scene:
    """Frames that follow one another.

    Attributes:
        name: of the scene.
        frames: their places in the split.
        rate: frames per second; None where they have no times.
    """

    name: str
    frames: range
    rate: float | None


class StoredFrames(ABC):
    """The frames of a split: annotations, images, and the detections of models that are on disk.

    What :meth:`read` returns of a frame is the format's own; the other methods are given it.
    """

    class_names: tuple[str, ...]
    """In the order of the labels."""
    names: Sequence[str]
    """Of the frames; one may be a path, such as TOKEN/CAM_FRONT."""

    def __len__(self) -> int:
        return len(self.names)

    def scenes(self) -> list[Scene]:
        """Returns the scenes; by default one of all frames, without times."""
        return [Scene("all", range(len(self)), None)]

    @abstractmethod
    def read(self, folder: Path) -> Sequence[Any]:
        """Reads what an evaluation of the split stored.

        Args:
            folder: "inference" in the OUTPUT_DIR of a run.

        Returns:
            The detections of each frame.

        Raises:
            FileNotFoundError: they are not there.
            ValueError: they are of other frames.
        """

    def drawn(self, found: Any) -> DrawnObjects:
        """Returns a frame's detections for drawing; by default those that :meth:`read` returned.

        Args:
            found: what :meth:`read` returned of the frame.

        Raises:
            TypeError: it cannot be drawn, and the format does not convert it.
        """
        if not isinstance(found, DrawnObjects):
            name = type(self).__name__
            raise TypeError(
                f"{name}.read returned a {type(found).__name__} for a frame, expected DrawnObjects; override "
                f"{name}.drawn to convert it"
            )
        return found

    @abstractmethod
    def truth(self, i: int) -> DrawnObjects:
        """Returns the annotations of a frame.

        Args:
            i: the frame's place in :attr:`names`.
        """

    @abstractmethod
    def extent(self, i: int) -> tuple[float, float, float, float]:
        """Returns what a frame's view from above shows: x0, y0, x1, y1 in metres.

        Args:
            i: the frame's place in :attr:`names`.
        """

    @abstractmethod
    def view(self, i: int) -> FrameView:
        """Returns the images of a frame, which are read from disk.

        Args:
            i: the frame's place in :attr:`names`.
        """

    def match(
        self, i: int, found: Any, *, score_threshold: float, limit: float | None, far: float
    ) -> FrameMatches:
        """Matches detections with the objects of :meth:`truth`, as the data set's evaluation does.

        By default as nuScenes does, by the distance of the centres on the ground.

        Args:
            i: the frame.
            found: its detections.
            score_threshold: least score of a detection that counts.
            limit: what a match must meet, in the evaluation's own measure; None: as the evaluation.
            far: metres, see :func:`bevkd2.structures.matches.classify`.

        Raises:
            ValueError: the detections have no scores.
        """
        truth, detections = self.truth(i), self.drawn(found)
        if detections.scores is None:
            raise ValueError(
                f"the detections of frame {self.names[i]} have no scores, as annotations; give every "
                f"detection a score in {type(self).__name__}.read or .drawn"
            )
        places = [objects.boxes.center.double().numpy() for objects in (detections, truth)]
        return match_by_distance(
            ground_distances(*places),
            truth.labels,
            detections.labels,
            detections.scores,
            score_threshold=score_threshold,
            limit=MATCH_DISTANCE if limit is None else limit,
            far=far,
        )


class MonoStoredFrames(StoredFrames):
    """The images of a :class:`MonoIndex`; a subclass adds :meth:`read`, and ``match`` where it has a rule."""

    def __init__(self, index: MonoIndex, class_names: Sequence[str]) -> None:
        """Takes the split.

        Args:
            index: annotated images.
            class_names: in the order of the labels.
        """
        self._index, self.class_names = index, tuple(class_names)
        self.names = [index.record(i).image_id for i in range(len(index))]

    def truth(self, i: int) -> DrawnObjects:
        """Returns the objects of an image, in the upright axes of its camera.

        Raises:
            ValueError: the image is not annotated.
        """
        boxes, labels = annotated_objects(self._index.record(i))
        return DrawnObjects.from_dict({"boxes": boxes, "labels": labels})

    def extent(self, i: int) -> tuple[float, float, float, float]:
        """Returns what fits the annotations."""
        return fitting_extent(self.truth(i))

    def view(self, i: int) -> FrameView:
        """Returns the image."""
        record = self._index.record(i)
        size = (record.height, record.width)
        image = to_image(read_image(record.file_name, f"image {record.image_id}", size, "the data set"))
        return FrameView({"camera": image}, {"camera": record.cam2img}, self.extent(i), monocular=True)


def to_image(pixels: torch.Tensor) -> Image:
    """Returns (H, W, 3) of pixels (3, H, W), uint8."""
    image: Image = np.ascontiguousarray(pixels.numpy().transpose(1, 2, 0))
    return image
