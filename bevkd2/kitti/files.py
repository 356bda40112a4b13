"""The frames of a split, and which label and detection files are evaluated against each other."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bevkd2.kitti.labels import KittiObjects, read_detections, read_labels
from bevkd2.kitti.text import read_ascii

_SHOWN = 5  # names in a message
_FRAME_ID = re.compile(r"[0-9]{6}")


def has_labels(split: str) -> bool:
    """Returns whether a split is of the folder training, which has labels.

    Frames of a split named ``test``, or whose name begins with ``test_``, are those of the folder testing.
    """
    return not (split == "test" or split.startswith("test_"))


def split_folder(root: str | Path, split: str) -> Path:
    """Returns the folder of a split, which has image_2, calib and, in training, label_2.

    Args:
        root: the folder with training and testing; whether they exist is not checked.
        split: a name of ImageSets, such as "train"; see :func:`has_labels`.
    """
    return Path(root) / ("training" if has_labels(split) else "testing")


def frame_list_path(root: str | Path, split: str) -> Path:
    """Returns the file that lists the frames of a split, which need not exist.

    Args:
        root: directory that holds ImageSets.
        split: name of the list, such as ``val``.

    Raises:
        ValueError: the name is a path, which could lead out of ImageSets.
    """
    if PurePosixPath(split).name != split:
        raise ValueError(
            f"the split {split!r} is a path, expected the name of a list in {Path(root) / 'ImageSets'}, such "
            "as val (DATASETS.TRAIN and DATASETS.TEST)"
        )
    return Path(root) / "ImageSets" / f"{split}.txt"


def read_frame_list(path: str | Path) -> tuple[str, ...]:
    """Reads the frames of a split.

    Args:
        path: a text file with a frame of six digits in each line; blank lines are skipped.

    Returns:
        The frames in the order of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: something that is no frame, a frame twice, or none at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not a file; expected the list of a split, as ImageSets/val.txt, with a frame of six "
            "digits a line"
        )
    frames: dict[str, int] = {}
    lines = read_ascii(path).decode(errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        frame = line.strip()
        if not frame:
            continue
        if not _FRAME_ID.fullmatch(frame):
            raise ValueError(f"{path}, line {number}: {frame!r}, expected a frame of six digits, as 000008")
        if frame in frames:
            raise ValueError(
                f"{path}, line {number}: frame {frame} is in line {frames[frame]} already; every frame "
                "counts once, take one out"
            )
        frames[frame] = number
    if not frames:
        raise ValueError(f"{path} lists no frame, expected one per line, as 000008")
    return tuple(frames)


@dataclass(frozen=True)
class KittiFrames:
    """The files of the frames to be evaluated.

    Attributes:
        names: of the frames: the files' names without .txt.
        ground_truth_dir: the directory that holds the label files themselves.
        detection_dir: the directory that holds the detection files themselves.
        left_out: how many frames of the ground truth are not evaluated.
    """

    names: tuple[str, ...]
    ground_truth_dir: Path
    detection_dir: Path
    left_out: int

    def read(self) -> tuple[list[KittiObjects], list[KittiObjects]]:
        """Reads all of them.

        Returns:
            Labels and detections, an entry a frame.

        Raises:
            ValueError: a file that cannot be evaluated; names it and the line.
        """
        truths = [read_labels(self.ground_truth_dir / f"{name}.txt") for name in self.names]
        return truths, [read_detections(self.detection_dir / f"{name}.txt") for name in self.names]


def find_frames(
    ground_truth: str | Path,
    detections: str | Path,
    split: Sequence[str] | None = None,
    name: str = "the split",
) -> KittiFrames:
    """Pairs the files of two directories.

    The files are those in the first that exists of DIR/label_2, DIR/data and DIR itself for ground truth, of
    DIR/data, DIR/label_2 and DIR itself for detections.

    Without a split, frames are those that have a detection file, as in the official evaluation: a frame
    without one is not counted at all, and its objects are no misses. With a split, every frame of it must
    have a file, and no other frame may; an empty file says that nothing was found.

    Args:
        ground_truth: directory of label files.
        detections: directory of detection files.
        split: names of frames, or None.
        name: what the split is called in errors, such as the file that lists it.

    Returns:
        The frames.

    Raises:
        FileNotFoundError: a directory does not exist or holds no .txt file, or a frame lacks a file.
        ValueError: there is a detection file of a frame that is not in the ground truth or not in the split.
    """
    truth_dir = _text_folder(Path(ground_truth), ("label_2", "data"), "label")
    detection_dir = _text_folder(Path(detections), ("data", "label_2"), "detection")
    labelled, detected = _names(truth_dir), _names(detection_dir)
    if foreign := detected - labelled:
        raise ValueError(
            f"{detection_dir} has detections of {_listed(foreign)} without a label file in {truth_dir}; "
            "name the right ground truth, or remove them"
        )
    wanted = detected if split is None else set(split)
    if missing := wanted - labelled:
        raise FileNotFoundError(
            f"{truth_dir} has no label file of {_listed(missing)}, which {name} lists; name the right "
            "ground truth, or another split"
        )
    if missing := wanted - detected:
        raise FileNotFoundError(
            f"{detection_dir} has no detection file of {_listed(missing)}, which {name} lists; where "
            "nothing was found, write an empty file"
        )
    if foreign := detected - wanted:
        raise ValueError(
            f"{detection_dir} has detections of {_listed(foreign)}, which {name} does not list; remove "
            "them, or name the split that was detected on"
        )
    return KittiFrames(tuple(sorted(wanted)), truth_dir, detection_dir, len(labelled - wanted))


def _text_folder(folder: Path, subfolders: tuple[str, ...], kind: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a directory; expected one with {kind} files (000000.txt)")
    found = next((folder / name for name in subfolders if (folder / name).is_dir()), folder)
    if not any(found.glob("*.txt")):
        raise FileNotFoundError(
            f"{found} holds no {kind} file (000000.txt); looked for {folder}/{subfolders[0]}, "
            f"{folder}/{subfolders[1]} and {folder} itself, in this order"
        )
    return found


def _names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.txt")}


def _listed(names: Collection[str]) -> str:
    first = ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} frame{'s' if len(names) > 1 else ''} ({first})"
