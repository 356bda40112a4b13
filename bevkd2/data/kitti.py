"""KITTI's object data, as a data format."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from fvcore.common.config import CfgNode

from bevkd2.config import class_names
from bevkd2.d2 import DatasetEvaluator
from bevkd2.data.format import DATA_FORMAT_REGISTRY, dataset_root, load_dataset
from bevkd2.data.image_files import png_size
from bevkd2.data.mono.format import MonoFormat
from bevkd2.data.mono.index import MonoRecord
from bevkd2.data.mono.targets import Labelled
from bevkd2.kitti.calibration import check_principal_point, read_cam2img
from bevkd2.kitti.files import frame_list_path, has_labels, read_frame_list, split_folder
from bevkd2.kitti.labels import TYPES, read_labels
from bevkd2.structures import CameraBoxes3D

if TYPE_CHECKING:
    from bevkd2.data.stored import StoredFrames
    from bevkd2.data.synthetic.world import SyntheticWorld
    from bevkd2.evaluation.left_out import LeftOutScorer

logger = logging.getLogger(__name__)

_COLUMNS = 7


@dataclasses.dataclass(frozen=True, eq=False)
class KittiIndex:
    """F frames in the order of the split's list, with M objects of the classes to be found in total.

    Attributes:
        folder: the directory that holds image_2, calib and label_2.
        split: name of the split.
        frame_ids: (F,) of six digits each.
        image_sizes: (F, 2) height, width in pixels.
        cam2img: (F, 4, 4) float64, see ``read_cam2img``.
        annotated: whether the frames have labels.
        box_starts: (F + 1,) where a frame's objects begin; they end where the next frame's begin.
        boxes: (M, 7) float32 in the CameraBoxes3D layout.
        labels: (M,) int64 index into the classes.
        boxes2d: (M, 4) float32 x1, y1, x2, y2 of the label files, pixels.
        behind: (K,) objects of each class that were left out as their centre is not in front of the camera.
        others: labelled objects of other types, DontCare regions not among them.
    """

    folder: str
    split: str
    frame_ids: npt.NDArray[np.str_]
    image_sizes: npt.NDArray[np.int64]
    cam2img: npt.NDArray[np.float64]
    annotated: bool
    box_starts: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    boxes2d: npt.NDArray[np.float32]
    behind: npt.NDArray[np.int64]
    others: int

    def __len__(self) -> int:
        return len(self.frame_ids)

    def record(self, i: int) -> MonoRecord:
        """Returns frame ``i``, 0 <= i < F."""
        height, width = self.image_size(i)
        name = str(self.frame_ids[i])
        record = MonoRecord(name, _image_file(self.folder, name), height, width, self.cam2img[i].copy())
        if not self.annotated:
            return record
        where = slice(int(self.box_starts[i]), int(self.box_starts[i + 1]))
        return dataclasses.replace(
            record,
            boxes=CameraBoxes3D(torch.from_numpy(self.boxes[where].copy())),
            labels=torch.from_numpy(self.labels[where].copy()),
            boxes2d=torch.from_numpy(self.boxes2d[where].copy()),
        )

    def image_size(self, i: int) -> tuple[int, int]:
        """Returns (height, width) of frame ``i`` in pixels."""
        height, width = self.image_sizes[i].tolist()
        return height, width

    def labelled(self) -> Labelled:
        """Returns the objects of the label files, by class."""
        kept = np.bincount(self.labels, minlength=len(self.behind))
        return Labelled(kept, {"are not in front of the camera": self.behind}, self.others)

    def groups(self) -> list[range]:
        """Returns one range per frame: any process may score it."""
        return [range(i, i + 1) for i in range(len(self))]


def load_kitti(root: str | Path, split: str, classes: Sequence[str]) -> KittiIndex:
    """Loads the index of a split; a process reads the same files once, as long as they do not change.

    Frames of a split named ``test``, or whose name begins with ``test_``, are those of the folder testing,
    which has no labels; all others are those of training and must have them. Objects of other types than
    ``classes`` are background. So is an object whose centre is not in front of the camera; how many there
    are is logged.

    Args:
        root: directory that holds training (and testing) and ImageSets.
        split: name of a list in ImageSets.
        classes: what is to be found, in the order of the labels.

    Returns:
        The index.

    Raises:
        FileNotFoundError: root, split, an image, a calibration or a label file does not exist.
        ValueError: a frame list, an image, a calibration or a label file that cannot be.
    """
    frames = _read_split(Path(root), split)
    folder = split_folder(root, split)
    return _load(str(folder), split, tuple(classes), frames, _state_of_files(folder, frames, split))


def _image_file(folder: str | Path, frame: str) -> str:
    return os.path.join(folder, "image_2", f"{frame}.png")  # noqa: PTH118  (thousands of them)


def _read_split(root: Path, split: str) -> tuple[str, ...]:
    """Returns the frames of a split, from ImageSets/<split>.txt."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"the dataset root {str(root)!r} does not exist. Set DATASETS.ROOT in the config, or on the "
            "command line (DATASETS.ROOT /path/to/kitti), to the directory that holds training and "
            "ImageSets; or make a synthetic world with `bevkd2 make-synthetic --format kitti --out "
            "DIR` and point it there"
        )
    path = frame_list_path(root, split)
    if not path.is_file():
        present = sorted(p.stem for p in (root / "ImageSets").glob("*.txt"))
        raise FileNotFoundError(
            f"{path} does not exist; it lists the frames of the split {split!r}, one per line. Splits there: "
            f"{', '.join(present) or 'none'}. Set DATASETS.TRAIN and DATASETS.TEST, or write the list"
        )
    return read_frame_list(path)


def _files(folder: Path, frame: str, labels: bool) -> list[str]:
    """Returns image, calibration and, where there are labels, label file of a frame."""
    files = [_image_file(folder, frame), str(folder / "calib" / f"{frame}.txt")]
    return [*files, str(folder / "label_2" / f"{frame}.txt")] if labels else files


def _state_of_files(folder: Path, frames: Sequence[str], split: str) -> str:
    """Returns a digest of sizes and times of all files of a split.

    Raises:
        FileNotFoundError: one does not exist.
    """
    states = []
    for frame in frames:
        for file in _files(folder, frame, has_labels(split)):
            try:
                state = os.stat(file)  # noqa: PTH116
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{file} does not exist, but the split {split!r} lists frame {frame}; unpack the archive "
                    "that holds it again, or take the frame out of ImageSets"
                ) from error
            states.append((state.st_size, state.st_mtime_ns))
    return hashlib.sha256(np.array(states, dtype=np.int64).tobytes()).hexdigest()


@functools.lru_cache(maxsize=8)
def _load(
    folder: str, split: str, classes: tuple[str, ...], frames: tuple[str, ...], _state: str
) -> KittiIndex:
    """Reads all files of a split; ``_state`` is a part of the cache's key only."""
    read = [_read_frame(Path(folder), frame, split, classes) for frame in frames]
    found = [frame.objects for frame in read]
    starts = np.cumsum([0] + [len(objects.labels) for objects in found])
    names = ", ".join(classes)
    logger.info("%s: %d frames, %d objects of %s", split, len(frames), starts[-1], names)
    behind = sum((objects.behind for objects in found), start=np.zeros(len(classes), np.int64))
    if behind.any():
        text = "%s: left out %d objects of %s whose centres are not in front of the camera"
        logger.warning(text, split, behind.sum(), names)
    return KittiIndex(
        folder=folder,
        split=split,
        frame_ids=np.array(frames),
        image_sizes=np.array([frame.size for frame in read], dtype=np.int64),
        cam2img=np.stack([frame.cam2img for frame in read]),
        annotated=has_labels(split),
        box_starts=starts,
        boxes=np.concatenate([objects.boxes for objects in found]),
        labels=np.concatenate([objects.labels for objects in found]),
        boxes2d=np.concatenate([objects.boxes2d for objects in found]),
        behind=behind,
        others=sum(objects.others for objects in found),
    )


@dataclasses.dataclass
class _FrameTargets:
    """The objects of a frame that are to be found; the fields are KittiIndex's."""

    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    boxes2d: npt.NDArray[np.float32]
    behind: npt.NDArray[np.int64]
    others: int


@dataclasses.dataclass
class _FrameFiles:
    size: tuple[int, int]
    cam2img: npt.NDArray[np.float64]
    objects: _FrameTargets


def _read_frame(folder: Path, frame: str, split: str, classes: tuple[str, ...]) -> _FrameFiles:
    image, calib, *label_file = _files(folder, frame, has_labels(split))
    size, cam2img = png_size(image), read_cam2img(calib)
    check_principal_point(calib, cam2img, image, size)
    if not label_file:
        none, behind = np.zeros((0, _COLUMNS), np.float32), np.zeros(len(classes), np.int64)
        targets = _FrameTargets(none, np.zeros(0, np.int64), none[:, :4], behind, 0)
        return _FrameFiles(size, cam2img, targets)
    return _FrameFiles(size, cam2img, _objects_to_find(label_file[0], classes, cam2img))


def _objects_to_find(path: str, classes: tuple[str, ...], cam2img: npt.NDArray[np.float64]) -> _FrameTargets:
    """Returns the objects of the classes, in front of the camera."""
    objects = read_labels(path)
    others = int((~np.isin(objects.types, (*classes, "DontCare"))).sum())
    objects = objects[np.isin(objects.types, classes)]
    if (objects.sizes <= 0).any():
        bad = int((objects.sizes <= 0).any(axis=1).argmax())
        raise ValueError(
            f"{path}: a {objects.types[bad]} of height, width, length {objects.sizes[bad].tolist()} m, "
            "expected sizes above 0; correct the row, or call it DontCare"
        )
    z = objects.location[:, 2]
    # Of the rectified camera 0, and of camera 2, which took the image.
    front = np.minimum(z, z + cam2img[2, 3]) > 0
    kept = objects[front]
    rows = np.column_stack([kept.location, kept.sizes[:, [2, 0, 1]], kept.rotation_y])
    boxes = CameraBoxes3D.from_bottom(torch.from_numpy(rows)).tensor.float().numpy()
    labels = np.array([classes.index(name) for name in objects.types], dtype=np.int64)
    behind = np.bincount(labels[~front], minlength=len(classes))
    return _FrameTargets(boxes, labels[front], kept.boxes2d.astype(np.float32), behind, others)


@DATA_FORMAT_REGISTRY.register()
class KittiFormat(MonoFormat):
    """Single images with KITTI's label and calibration files."""

    name = "kitti"
    default_classes = ("Pedestrian", "Cyclist", "Car")  # the order of the published PGD and SMOKE heads
    known_classes = tuple(name for name in TYPES if name != "DontCare")
    typical_image_size = (1242, 375)  # they differ by some pixels

    def register(self, cfg: CfgNode, split: str) -> str:
        """Registers a split; one of the folder testing, which has no labels, cannot be trained with."""
        if split in cfg.DATASETS.TRAIN and not has_labels(split):
            raise ValueError(
                f"DATASETS.TRAIN names {split!r}, whose frames are in the folder testing, which has no "
                "labels; call the list of a training split otherwise (neither test nor test_...)"
            )
        return super().register(cfg, split)

    def load(self, cfg: CfgNode, split: str) -> KittiIndex:
        """Returns the frames of a split."""
        return load_kitti(dataset_root(cfg), split, class_names(cfg))

    def labelled(self, index: KittiIndex) -> Labelled:  # type: ignore[override]
        """Returns the objects of a split."""
        return index.labelled()

    def evaluator(self, cfg: CfgNode, split: str, output_dir: Path) -> DatasetEvaluator:
        """Returns KITTI's score."""
        from bevkd2.evaluation.kitti import KittiEvaluator

        return KittiEvaluator(
            root=dataset_root(cfg), split=split, classes=class_names(cfg), output_dir=output_dir
        )

    def left_out_scorer(self, cfg: CfgNode, split: str) -> LeftOutScorer:
        """Returns KITTI's score at any IoU, without one block of images at a time."""
        from bevkd2.evaluation.kitti_blocks import KittiBlocks

        return KittiBlocks(root=dataset_root(cfg), split=split)

    def stored_frames(self, cfg: CfgNode, split: str) -> StoredFrames:
        """Returns the images and their labels; matches are those of the score in 3D, at hard."""
        from bevkd2.data.stored.kitti import KittiStoredFrames

        index = load_dataset(cfg, split)
        return KittiStoredFrames(dataset_root(cfg), index, class_names(cfg))

    def synthetic_world(self) -> type[SyntheticWorld]:
        """Returns the settings of the world in KITTI layout."""
        from bevkd2.data.synthetic import KittiWorldConfig

        return KittiWorldConfig
