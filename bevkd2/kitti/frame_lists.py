"""Frame lists of the KITTI layout: ImageSets/<split>.txt."""

from __future__ import annotations

import re
from pathlib import Path

_FRAME_ID = re.compile(r"\d{6}")


def has_labels(split: str) -> bool:
    """Returns whether a split is of the folder training, which has labels.

    Frames of a split named ``test``, or whose name begins with ``test_``, are those of the folder testing.
    """
    return not (split == "test" or split.startswith("test_"))


def split_folder(root: str | Path, split: str) -> Path:
    """Returns the folder with image_2, calib and, in training, label_2 of a split; see :func:`has_labels`."""
    return Path(root) / ("training" if has_labels(split) else "testing")


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
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
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
