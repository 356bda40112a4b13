"""KITTI's matching of one image, by the overlap in 3D: which object is found by which detection.

The rules are those of ``csrc/kitti_eval/matching.h``, where detections of at least a score are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bevkd2.kitti.ap import CLASSES, MIN_OVERLAPS, NEIGHBOURS, TYPE_OF_CLASS, counts_at, detection_counts_at
from bevkd2.kitti.labels import KittiObjects
from bevkd2.ops.box3d import box3d_iou
from bevkd2.structures import Boxes3D, CameraBoxes3D
from bevkd2.structures.matches import FrameMatches, classify, ground_distances

_SOLID = 2  # place of "3d" in METRICS


@dataclass(frozen=True)
class KittiRule:
    """When a detection finds an object.

    Attributes:
        difficulty: one of bevkd2.kitti.ap.DIFFICULTIES: which objects count.
        min_overlaps: by KITTI's type ("Car") the IoU in 3D that a match must exceed.
    """

    difficulty: str
    min_overlaps: Mapping[str, float]

    @classmethod
    def official(cls, overlap: float | None = None, difficulty: str = "hard") -> KittiRule:
        """Returns the rule of the benchmark.

        Args:
            overlap: the IoU for every class; None: the benchmark's, 0.7 for cars, 0.5 for the others.
            difficulty: which objects count.

        Raises:
            ValueError: an IoU that cannot be.
        """
        if overlap is not None and not 0 <= overlap < 1:
            raise ValueError(f"the overlap of a match is {overlap:g}, expected an IoU from 0 to below 1")
        overlaps = {
            TYPE_OF_CLASS[name]: MIN_OVERLAPS[name][_SOLID] if overlap is None else overlap
            for name in CLASSES
        }
        return cls(difficulty, overlaps)


def upright_boxes(objects: KittiObjects) -> Boxes3D:
    """Returns the boxes of objects in the camera's upright axes, float64; no DontCare region among them."""
    sizes = objects.sizes[:, [2, 0, 1]]
    rows = np.column_stack([objects.location, sizes, objects.rotation_y])
    return CameraBoxes3D.from_bottom(torch.from_numpy(rows)).upright()


def match_image(
    truths: KittiObjects,
    found: KittiObjects,
    classes: Sequence[str],
    rule: KittiRule,
    *,
    score_threshold: float,
    far: float,
) -> FrameMatches:
    """Matches the detections of an image.

    Args:
        truths: of the label file, without its DontCare regions: they have no place in 3D.
        found: the detections.
        classes: names of the labels, in their order; a type that is none of them has the label -1.
        rule: when a detection finds an object.
        score_threshold: least score of a detection that counts.
        far: metres, see :func:`bevkd2.structures.matches.classify`.

    Returns:
        The matches. Of types that KITTI does not score, all are ignored.

    Raises:
        ValueError: the detections have no scores.
    """
    if found.scores is None:
        raise ValueError(
            f"match_image: found, {len(found)} objects, has no scores; expected "
            "detections; labels are given as truths"
        )
    boxes, other = upright_boxes(truths), upright_boxes(found)
    overlaps = box3d_iou(other.tensor, boxes.tensor).numpy()
    high_enough = detection_counts_at(found, rule.difficulty)
    above = found.scores >= score_threshold
    matched = np.full(len(truths), -1, dtype=np.int64)
    counted, false = np.zeros(len(truths), dtype=np.bool_), np.zeros(len(found), dtype=np.bool_)
    for name in CLASSES:
        kitti_type = TYPE_OF_CLASS[name]
        counts = counts_at(truths, rule.difficulty) & (truths.types == kitti_type)
        of_class = found.types == kitti_type
        taken = np.zeros(len(found), dtype=np.bool_)
        for i in np.flatnonzero((truths.types == kitti_type) | (truths.types == NEIGHBOURS.get(name))):
            candidates = above & ~taken & (of_class | ~high_enough)
            candidates &= overlaps[:, i] > rule.min_overlaps[kitti_type]
            best = _best(candidates, high_enough, overlaps[:, i])
            counted[i] |= counts[i] and (best < 0 or bool(high_enough[best]))
            if best >= 0:
                taken[best] = True
                matched[i] = best
        false |= above & of_class & high_enough & ~taken
    centers = [box.center[:, :2].numpy() for box in (other, boxes)]
    return classify(
        ground_distances(*centers),
        labels_of(truths, classes),
        labels_of(found, classes),
        matched,
        counted,
        false,
        far,
    )


def _best(
    candidates: npt.NDArray[np.bool_], high_enough: npt.NDArray[np.bool_], overlaps: npt.NDArray[np.float64]
) -> int:
    """Returns the candidate of the largest overlap, or else the first that is too low to count; -1: none."""
    count = np.flatnonzero(candidates & high_enough)
    if len(count):
        return int(count[overlaps[count].argmax()])
    low = np.flatnonzero(candidates)
    return int(low[0]) if len(low) else -1


def labels_of(objects: KittiObjects, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Returns (n,) the place of each object's type among the classes; -1 where it is none of them."""
    places = {name: label for label, name in enumerate(classes)}
    return np.array([places.get(str(name), -1) for name in objects.types], dtype=np.int64)
