"""KITTI's detection files, with the images and labels that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bevkd2.data.kitti import KittiIndex
from bevkd2.data.stored.frames import MonoStoredFrames
from bevkd2.evaluation.kitti_matching import KittiRule, labels_of, match_image, upright_boxes
from bevkd2.kitti.files import find_frames
from bevkd2.kitti.labels import KittiObjects, read_detections, read_labels
from bevkd2.structures.matches import FrameMatches
from bevkd2.visualization.objects import DrawnObjects


class KittiStoredFrames(MonoStoredFrames):
    """Objects and detections of the classes; matches exceed the IoU in 3D of KITTI's evaluation at hard."""

    def __init__(self, root: str, index: KittiIndex, class_names: Sequence[str]) -> None:
        """Reads the labels.

        Args:
            root: directory that holds training.
            index: an annotated split.
            class_names: in the order of the labels.

        Raises:
            ValueError: a split without labels.
        """
        super().__init__(index, class_names)
        if not index.annotated:
            raise ValueError(
                f"the split {index.split!r} has no labels, so that nothing can be missed in it; name another "
                "one in DATASETS.TEST"
            )
        self._labels = Path(root) / "training" / "label_2"
        self._split = index.split

    def read(self, folder: Path) -> list[KittiObjects]:
        """Reads ``data/<image>.txt`` of every image."""
        frames = find_frames(self._labels, folder, self.names, f"the split {self._split!r}")
        return [
            self._of_classes(read_detections(frames.detection_dir / f"{name}.txt")) for name in self.names
        ]

    def drawn(self, found: KittiObjects) -> DrawnObjects:
        """Returns objects in the upright axes of their camera."""
        return DrawnObjects(upright_boxes(found), labels_of(found, self.class_names), found.scores)

    def truth(self, i: int) -> DrawnObjects:
        """Returns the labelled objects of the classes."""
        return self.drawn(self._of_classes(self._labelled(i)))

    def match(
        self, i: int, found: KittiObjects, *, score_threshold: float, limit: float | None, far: float
    ) -> FrameMatches:
        """Matches by the IoU in 3D; ``limit`` is that of every class."""
        labelled = self._labelled(i)
        rule = KittiRule.official(limit)
        matches = match_image(
            labelled, found, self.class_names, rule, score_threshold=score_threshold, far=far
        )
        drawn = matches.labels >= 0
        return FrameMatches(
            matches.labels[drawn],
            matches.objects[drawn],
            matches.errors[drawn],
            matches.detection_labels,
            matches.detections,
        )

    def _labelled(self, i: int) -> KittiObjects:
        objects = read_labels(self._labels / f"{self.names[i]}.txt")
        return objects[objects.types != "DontCare"]

    def _of_classes(self, objects: KittiObjects) -> KittiObjects:
        return objects[np.isin(objects.types, self.class_names)]
