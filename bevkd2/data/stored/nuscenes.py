"""nuScenes' results files, with the key frames that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bevkd2.data.image_files import read_image
from bevkd2.data.nuscenes.index import NuScenesIndex
from bevkd2.data.stored.frames import Scene, StoredFrames, to_image
from bevkd2.evaluation.nuscenes import annotated_boxes, boxes_that_count, read_tables
from bevkd2.evaluation.nuscenes_results import read_results
from bevkd2.nuscenes.devkit import DetectionBox, EvalBoxes
from bevkd2.nuscenes.layout import CLASS_NAMES
from bevkd2.structures import GlobalBoxes, from_global
from bevkd2.visualization.comparison_view import FrameView
from bevkd2.visualization.objects import DrawnObjects

_MICROSECONDS = 1e6
_LARGEST_TILE = (450, 800)  # pixels that pictures need of an image; a JPEG may be decoded at a half or less


class NuScenesStoredFrames(StoredFrames):
    """Key frames with all cameras; the boxes are those that the devkit's evaluation counts, in LIDAR_TOP."""

    class_names = CLASS_NAMES

    def __init__(
        self, root: str, version: str, index: NuScenesIndex, extent: tuple[float, float, float, float]
    ) -> None:
        """Reads the tables.

        Args:
            root: the dataset's root.
            version: name of the tables.
            index: the split.
            extent: x0, y0, x1, y1 of the view from above, metres.
        """
        self._index, self._extent = index, extent
        self._tables = read_tables(root, version, index.split)
        self.names = [token.decode() for token in index.sample_tokens]
        boxes = annotated_boxes(self._tables, self.names)
        self._truths = [self._objects(i, boxes[name], scored=False) for i, name in enumerate(self.names)]

    def scenes(self) -> list[Scene]:
        """Returns the scenes with the rate of their key frames."""
        found = []
        for frames in self._index.scenes():
            name = self._tables.get("scene", self._index.scene_tokens[frames[0]].decode())["name"]
            steps = np.diff(self._index.timestamps[frames.start : frames.stop]) / _MICROSECONDS
            found.append(Scene(name, frames, float(1 / np.median(steps)) if len(steps) else None))
        return found

    def read(self, folder: Path) -> list[DrawnObjects]:
        """Reads ``results_nusc.json``; errors also as ``read_results``."""
        path = folder / "results_nusc.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; `bevkd2 eval` writes it to inference in OUTPUT_DIR. Name that folder"
            )
        results = read_results(path)
        if missing := set(self.names) ^ set(results):
            raise ValueError(
                f"{path} has {len(results)} samples, the split {self._index.split!r} {len(self.names)}; they "
                f"differ, for example in {min(missing)!r}. Evaluate the model on this split, or name the "
                "other one in DATASETS.TEST"
            )
        boxes = boxes_that_count(self._tables, EvalBoxes.deserialize(results, DetectionBox))
        return [self._objects(i, boxes[name], scored=True) for i, name in enumerate(self.names)]

    def truth(self, i: int) -> DrawnObjects:
        """Returns the objects that count."""
        return self._truths[i]

    def extent(self, i: int) -> tuple[float, float, float, float]:
        """Returns the extent that all frames have."""
        return self._extent

    def view(self, i: int) -> FrameView:
        """Returns the images of all cameras."""
        index, images = self._index, {}
        files = index[i]["file_names"]
        for camera, file, size in zip(index.cameras, files, index.image_sizes[i].tolist(), strict=True):
            owner = f"sample {self.names[i]!r}"
            images[camera] = to_image(read_image(file, owner, tuple(size), "sample_data", _LARGEST_TILE))
        sizes = [(image.shape[0], image.shape[1]) for image in images.values()]
        projections = dict(zip(index.cameras, index.lidar2img(i, sizes), strict=True))
        return FrameView(images, projections, self._extent, monocular=False)

    def _objects(self, i: int, boxes: Sequence[DetectionBox], scored: bool) -> DrawnObjects:
        """Returns boxes of the global frame in LIDAR_TOP."""
        rows = GlobalBoxes(
            translation=np.array([box.translation for box in boxes], dtype=np.float64).reshape(-1, 3),
            size=np.array([box.size for box in boxes], dtype=np.float64).reshape(-1, 3),
            rotation=np.array([box.rotation for box in boxes], dtype=np.float64).reshape(-1, 4),
            velocity=np.array([box.velocity for box in boxes], dtype=np.float64).reshape(-1, 2),
        )
        labels = np.array([CLASS_NAMES.index(box.detection_name) for box in boxes], dtype=np.int64)
        scores = np.array([box.detection_score for box in boxes], dtype=np.float64)
        return DrawnObjects(
            from_global(rows, self._index.lidar2global[i]), labels, scores if scored else None
        )
