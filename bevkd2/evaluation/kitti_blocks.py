"""KITTI's score at any IoU, and without one block of images at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bevkd2.evaluation.left_out import LeftOut
from bevkd2.kitti.ap import CLASSES, DIFFICULTIES, MIN_OVERLAPS, kitti_scores
from bevkd2.kitti.files import KittiFrames, frame_list_path, read_frame_list, split_folder
from bevkd2.kitti.labels import KittiObjects

_METRICS = {"2D": "bbox", "BEV": "bev", "3D": "3d"}
_NAME = re.compile(
    rf"({'|'.join(CLASSES)})_({'|'.join(_METRICS)})_({'|'.join(DIFFICULTIES)})_R40"
    r"(?:@(0\.\d+)(?::(0\.\d+))?)?",
    re.IGNORECASE,
)
_STEP = 0.05
_TOLERANCE = 1e-6  # of an IoU that is written in decimals


class KittiBlocks:
    """A :class:`LeftOutScorer` of KITTI's detection files.

    A metric is AP|R40 in percent: ``Car_3D_moderate_R40`` at KITTI's own IoU, ``Car_3D_moderate_R40@0.5`` at
    another one, ``Car_3D_moderate_R40@0.5:0.75`` the mean over 0.5, 0.55, ... 0.75. A class without a single
    detection scores 0, where the official tool gives nothing.

    The parts are blocks of images, each of every n-th image: KITTI's images are independent, and AP without
    one image of a thousand is expensive for what it says.
    """

    def __init__(self, *, root: str | Path, split: str, blocks: int = 40) -> None:
        """Chooses what to score against.

        Args:
            root: directory that holds training and ImageSets.
            split: name of a list in ImageSets, with labels.
            blocks: parts; where there are fewer images, one a part.
        """
        self._root, self._split, self._blocks = Path(root), split, blocks

    def check(self, metrics: Sequence[str]) -> None:
        """Checks names of metrics.

        Args:
            metrics: the names.

        Raises:
            ValueError: one is unknown.
        """
        for name in metrics:
            overlaps(name)

    def score(self, folder: Path, metrics: Sequence[str], plain: Sequence[str] = ()) -> LeftOut:
        """Scores the split, and without each block of images.

        Image i is in block i modulo the number of blocks.

        Args:
            folder: where the evaluation has written ``data``, its detections in KITTI's format.
            metrics: those that are also wanted without each block.
            plain: those that are not.

        Raises:
            ValueError: an unknown metric, or a split of one image.
        """
        self.check([*metrics, *plain])
        names = read_frame_list(frame_list_path(self._root, self._split))
        if len(names) < 2:
            raise ValueError(f"split {self._split!r} of {self._root} has one image, expected two or more")
        labels = split_folder(self._root, self._split) / "label_2"
        truths, found = KittiFrames(names, labels, folder / "data", 0).read()
        blocks = min(self._blocks, len(names))
        kept = [[i for i in range(len(names)) if i % blocks != block] for block in range(blocks)]
        lacking = [_score([truths[i] for i in part], [found[i] for i in part], metrics) for part in kept]
        return LeftOut(
            _score(truths, found, [*metrics, *plain]),
            tuple(f"images {block} + {blocks} k" for block in range(blocks)),
            {name: [scores[name] for scores in lacking] for name in metrics},
        )


def overlaps(metric: str) -> tuple[str, list[float]]:
    """Returns what a metric's name says.

    Returns:
        The key of ``KittiScores``, and the IoUs over which the mean is taken.

    Raises:
        ValueError: it is no such name.
    """
    parts = _NAME.fullmatch(metric)
    if parts is None:
        raise ValueError(
            f"metric {metric!r} is unknown; expected such as Car_3D_moderate_R40, Car_3D_moderate_R40@0.5 or "
            f"Car_3D_moderate_R40@0.5:0.75: one of {', '.join(CLASSES)}, one of {', '.join(_METRICS)}, and "
            f"one of {', '.join(DIFFICULTIES)}"
        )
    name, kind, difficulty, low, high = parts.groups()
    key = f"{name.lower()}/{_METRICS[kind.upper()]}/{difficulty.lower()}"
    if low is None:
        return key, [MIN_OVERLAPS[name.lower()][list(_METRICS).index(kind.upper())]]
    first, last = float(low), float(high or low)
    steps = round((last - first) / _STEP)
    if first <= 0 or steps < 0 or abs(first + steps * _STEP - last) > _TOLERANCE:
        raise ValueError(
            f"metric {metric!r}: the IoUs are {low} to {high or low}; expected numbers above 0, the smaller "
            f"one first, and a whole number of steps of {_STEP} between them"
        )
    return key, [round(first + step * _STEP, 4) for step in range(steps + 1)]


def _score(
    truths: Sequence[KittiObjects], found: Sequence[KittiObjects], metrics: Sequence[str]
) -> dict[str, float]:
    wanted = {metric: overlaps(metric) for metric in metrics}
    curves: dict[float, dict[str, float]] = {}
    for overlap in {value for _, values in wanted.values() for value in values}:
        least = dict.fromkeys(CLASSES, (overlap,) * 3)
        curves[overlap] = kitti_scores(truths, found, min_overlaps=least).ap_r40()
    return {
        metric: float(np.mean([curves[value].get(key, 0.0) for value in values]))
        for metric, (key, values) in wanted.items()
    }
