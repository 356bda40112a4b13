"""KITTI's score: average precision in the image, in bird's eye view and in 3D, and orientation similarity.

The rules are those of the official development kit, its corners included (csrc/kitti_eval names them).
Three of them surprise often. Precision is averaged over the 41 thresholds by their number, so with fewer
than 40 objects to be found even perfect detections score far below 100. A class is evaluated only where at
least one detection of it exists. One detection without an observation angle (alpha = -10) switches the
orientation similarity off for all.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from tabulate import tabulate

from bevkd2.kitti.labels import TYPES, KittiObjects

try:
    import bevkd2._kitti_eval as _kitti_eval
except ImportError as error:
    raise ImportError(
        f"bevkd2's compiled KITTI score does not load: {error}. Build it in the source tree with "
        "`make build`, or `pip install --no-build-isolation -e .`"
    ) from error

CLASSES = ("car", "pedestrian", "cyclist")
METRICS = ("bbox", "bev", "3d")
DIFFICULTIES = ("easy", "moderate", "hard")

MIN_OVERLAPS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {"car": (0.7, 0.7, 0.7), "pedestrian": (0.5, 0.5, 0.5), "cyclist": (0.5, 0.5, 0.5)}
)
"""By class, for METRICS: the intersection over union that a match must exceed."""

# By difficulty, as in csrc/kitti_eval/objects.h: an object counts where its box in the image is higher (in
# pixels), and it is neither more occluded nor more truncated.
_LIMITS = {"easy": (40, 0, 0.15), "moderate": (25, 1, 0.30), "hard": (25, 2, 0.50)}
TYPE_OF_CLASS: Mapping[str, str] = MappingProxyType(
    {"car": "Car", "pedestrian": "Pedestrian", "cyclist": "Cyclist"}
)
"""By class, its type in the files."""
NEIGHBOURS: Mapping[str, str] = MappingProxyType({"car": "Van", "pedestrian": "Person_sitting"})
"""By class, the type that resembles it, which is neither right nor wrong when detected as it."""
_UNKNOWN_ALPHA = -10
_UNKNOWN_LOCATION = -1000


@dataclass(frozen=True)
class Curve:
    """Precision over recall of a class, by a metric, at a difficulty.

    Attributes:
        n_gt: objects to be found.
        min_overlap: what a match must exceed.
        thresholds: (T,) T <= 41 scores at about equal steps of recall.
        tp: (T,) true positives among the detections of at least that score.
        fp: (T,) false positives.
        fn: (T,) objects not found.
        recall: (T,) in [0, 1].
        precision: (41,) in [0, 1], the largest from each threshold on; 0 beyond the last one. NaN where
            nothing counted at a threshold.
        similarity: (T,) sum of (1 + cos(difference of alpha)) / 2 over the true positives; None where it is
            not evaluated: in bev and 3d, or as a detection has no alpha.
        aos: (41,) orientation similarity over true and false positives, as ``precision``; None as above.
    """

    n_gt: int
    min_overlap: float
    thresholds: npt.NDArray[np.float64]
    tp: npt.NDArray[np.int64]
    fp: npt.NDArray[np.int64]
    fn: npt.NDArray[np.int64]
    recall: npt.NDArray[np.float64]
    precision: npt.NDArray[np.float64]
    similarity: npt.NDArray[np.float64] | None
    aos: npt.NDArray[np.float64] | None

    @property
    def ap_r40(self) -> float:
        """Average precision in percent, over 40 recall positions: all but that at recall 0."""
        return 100 * float(self.precision[1:].mean())

    @property
    def ap_r11(self) -> float:
        """Average precision in percent, over 11 recall positions: 0, 0.1, ..., 1."""
        return 100 * float(self.precision[::4].mean())

    @property
    def aos_r40(self) -> float | None:
        """Average orientation similarity in percent, over 40 recall positions."""
        return None if self.aos is None else 100 * float(self.aos[1:].mean())


@dataclass(frozen=True)
class ObjectCount:
    """How many objects and detections of a class count at a difficulty, and why the others do not.

    Attributes:
        labelled: objects of the class.
        counted: those to be found.
        low: those whose box in the image is too low. One object may be in this and the next two.
        occluded: those that are occluded too much.
        truncated: those that are truncated too much.
        detected: detections of the class.
        detected_low: those whose box in the image is too low, which are neither right nor wrong.
    """

    labelled: int
    counted: int
    low: int
    occluded: int
    truncated: int
    detected: int
    detected_low: int


@dataclass(frozen=True)
class KittiScores:
    """What ``kitti_scores`` finds; keys are "class/metric/difficulty", as "car/3d/moderate".

    Attributes:
        images: how many were evaluated.
        curves: of what was evaluated.
        not_evaluated: keys of classes without a single detection (that has such a box).
        objects: of every class and difficulty; keys are "class/difficulty", as "car/moderate".
    """

    images: int
    curves: Mapping[str, Curve]
    not_evaluated: tuple[str, ...]
    objects: Mapping[str, ObjectCount] = dataclasses.field(default_factory=dict)

    def ap_r40(self) -> dict[str, float]:
        """Returns AP|R40 in percent of what was evaluated."""
        return {key: curve.ap_r40 for key, curve in self.curves.items()}

    def ap_r11(self) -> dict[str, float]:
        """Returns AP|R11 in percent of what was evaluated."""
        return {key: curve.ap_r11 for key, curve in self.curves.items()}

    def aos_r40(self) -> dict[str, float]:
        """Returns AOS|R40 in percent of what was evaluated, keys of the metric "bbox" only."""
        return {key: curve.aos_r40 for key, curve in self.curves.items() if curve.aos_r40 is not None}


@dataclass(frozen=True)
class DistanceBin:
    """The scores of the objects at ``low`` <= distance < ``high`` metres (see ``ap_by_distance``)."""

    low: float
    high: float
    scores: KittiScores


def kitti_scores(
    ground_truth: Sequence[KittiObjects],
    detections: Sequence[KittiObjects],
    *,
    min_overlaps: Mapping[str, tuple[float, float, float]] = MIN_OVERLAPS,
) -> KittiScores:
    """Scores detections as the official KITTI evaluation does.

    Args:
        ground_truth: the labels of each image, DontCare regions included.
        detections: with scores; of each of these images, empty where nothing was found.
        min_overlaps: by class of CLASSES and metric of METRICS.

    Returns:
        All curves.

    Raises:
        ValueError: no image, different numbers of images, detections without scores, or a number that is not
            finite.
    """
    truths, dets = _pool(ground_truth, detections)
    return _scores(truths, dets, min_overlaps, truths.none(), dets.none())


def ap_by_distance(
    ground_truth: Sequence[KittiObjects],
    detections: Sequence[KittiObjects],
    edges: Sequence[float] = (0, 20, 40, np.inf),
    *,
    min_overlaps: Mapping[str, tuple[float, float, float]] = MIN_OVERLAPS,
) -> list[DistanceBin]:
    """Returns scores by distance, which the official evaluation does not have.

    The distance is the horizontal one from the camera, sqrt(x^2 + z^2), of the box's centre. Objects and
    detections outside of a bin are ignored in it, as those that are too small for a difficulty: they count
    neither way, but a detection that matches an ignored object is no false positive, and an object that an
    ignored detection takes is no miss.

    Args:
        ground_truth: see ``kitti_scores``.
        detections: see ``kitti_scores``.
        edges: metres, rising; a bin lies between each two.
        min_overlaps: see ``kitti_scores``.

    Returns:
        One entry a bin.

    Raises:
        ValueError: as ``kitti_scores``, or edges that do not rise.
    """
    if len(edges) < 2 or not np.all(np.diff(edges) > 0):
        raise ValueError(
            f"edges {list(edges)} must be two or more rising distances in metres, as 0, 20, 40, inf"
        )
    truths, dets = _pool(ground_truth, detections)
    bins = []
    for low, high in itertools.pairwise(edges):
        outside = [(pool.distance() < low) | (pool.distance() >= high) for pool in (truths, dets)]
        bins.append(DistanceBin(low, high, _scores(truths, dets, min_overlaps, *outside)))
    return bins


def to_json(scores: KittiScores) -> dict[str, Any]:
    """Returns what is written to JSON files.

    Args:
        scores: from ``kitti_scores``.

    Returns:
        AP_R40, AP_R11 and AOS_R40 in percent, each keyed class/metric/difficulty; ``not_evaluated``, the keys
        that are in none of them; the number of images; ``objects``, the fields of ObjectCount keyed
        class/difficulty. A score that is not defined (0 / 0) is None.
    """

    def defined(values: Mapping[str, float]) -> dict[str, float | None]:
        return {key: value if np.isfinite(value) else None for key, value in values.items()}

    return {
        "AP_R40": defined(scores.ap_r40()),
        "AP_R11": defined(scores.ap_r11()),
        "AOS_R40": defined(scores.aos_r40()),
        "not_evaluated": list(scores.not_evaluated),
        "images": scores.images,
        "objects": {key: dataclasses.asdict(count) for key, count in scores.objects.items()},
    }


def precision_to_json(scores: KittiScores) -> dict[str, list[float | None]]:
    """Returns precision over recall as it is written to JSON files.

    Args:
        scores: from ``kitti_scores``.

    Returns:
        Keyed class/metric/difficulty, the 41 precisions in [0, 1] at recall 0, 1/40, ..., 1. AP_R40 is
        the mean of all but the first; None where one is not defined (0 / 0).
    """
    return {
        key: [float(value) if np.isfinite(value) else None for value in curve.precision]
        for key, curve in scores.curves.items()
    }


def to_table(scores: KittiScores) -> str:
    """Returns all scores as text, in percent; "-" where there was nothing to evaluate."""
    aos, rows = scores.aos_r40(), []
    for cls in CLASSES:
        for metric in METRICS:
            curves = [scores.curves.get(f"{cls}/{metric}/{difficulty}") for difficulty in DIFFICULTIES]
            r40 = [None if curve is None else curve.ap_r40 for curve in curves]
            r11 = [None if curve is None else curve.ap_r11 for curve in curves]
            rows.append([cls, metric, *r40, *r11])
        rows.append([cls, "aos", *(aos.get(f"{cls}/bbox/{difficulty}") for difficulty in DIFFICULTIES)])
    columns = [f"{difficulty} {kind}" for kind in ("R40", "R11") for difficulty in DIFFICULTIES]
    return tabulate(rows, headers=["class", "metric", *columns], floatfmt=".4f", missingval="-")


def to_object_table(scores: KittiScores) -> str:
    """Returns as text how many objects and detections count, and why the others do not."""
    rows = [[*key.split("/"), *dataclasses.astuple(count)] for key, count in scores.objects.items()]
    reasons = ("too low", "occluded", "truncated")
    headers = ("class", "difficulty", "labelled", "counted", *reasons, "detected", "too low")
    return tabulate(rows, headers=headers)


def why_zero(scores: KittiScores) -> list[str]:
    """Returns a sentence for each class whose AP is 0 whatever was detected, as nothing counts."""
    sentences = []
    for cls in CLASSES:
        if not any(key.startswith(f"{cls}/") for key in scores.curves):
            continue
        counts = {difficulty: scores.objects[f"{cls}/{difficulty}"] for difficulty in DIFFICULTIES}
        no_object = [difficulty for difficulty, count in counts.items() if not count.counted]
        no_detection = [d for d, count in counts.items() if count.detected_low == count.detected]
        if no_object:
            reason = _why_no_object(no_object[-1], counts[no_object[-1]])
            sentences.append(f"{cls}: no object counts at {', '.join(no_object)}, so AP is 0 there: {reason}")
        if no_detection:
            count, height = counts[no_detection[-1]], _LIMITS[no_detection[-1]][0]
            sentences.append(
                f"{cls}: no detection counts at {', '.join(no_detection)}, so AP is 0 there: all "
                f"{count.detected} have a box in the image that is lower than {height} pixels"
            )
    return sentences


def _why_no_object(difficulty: str, count: ObjectCount) -> str:
    if not count.labelled:
        return "none is labelled"
    height, occluded, truncated = _LIMITS[difficulty]
    return (
        f"of {count.labelled} labelled, {count.low} have a box in the image that is not higher than {height} "
        f"pixels, {count.occluded} are occluded beyond {occluded}, {count.truncated} truncated beyond "
        f"{truncated:g} (at {difficulty})"
    )


def counts_at(objects: KittiObjects, difficulty: str) -> npt.NDArray[np.bool_]:
    """Returns (n,) whether labelled objects count at a difficulty: high enough, and seen well enough."""
    height, most_occluded, most_truncated = _LIMITS[difficulty]
    low = objects.boxes2d[:, 3] - objects.boxes2d[:, 1] <= height
    counts: npt.NDArray[np.bool_] = ~(
        low | (objects.occluded > most_occluded) | (objects.truncated > most_truncated)
    )
    return counts


def detection_counts_at(objects: KittiObjects, difficulty: str) -> npt.NDArray[np.bool_]:
    """Returns (n,) whether detections are high enough in the image to count at a difficulty."""
    heights = np.abs(objects.boxes2d[:, 3] - objects.boxes2d[:, 1])
    enough: npt.NDArray[np.bool_] = heights >= _LIMITS[difficulty][0]
    return enough


@dataclass(frozen=True)
class _Pool:
    """The objects of all images, one after the other.

    Attributes:
        types: (n,) index into TYPES.
        columns: (n, 14 or 15) a row of the file, without the type.
        splits: (images + 1,) where the objects of each image begin.
    """

    types: npt.NDArray[np.int32]
    columns: npt.NDArray[np.float64]
    splits: npt.NDArray[np.int64]

    def none(self) -> npt.NDArray[np.bool_]:
        return np.zeros(len(self.types), dtype=np.bool_)

    def distance(self) -> npt.NDArray[np.float64]:
        return np.hypot(self.columns[:, 10], self.columns[:, 12])


def _pool(ground_truth: Sequence[KittiObjects], detections: Sequence[KittiObjects]) -> tuple[_Pool, _Pool]:
    if len(ground_truth) != len(detections) or not ground_truth:
        raise ValueError(
            f"there is ground truth of {len(ground_truth)} images and there are detections of "
            f"{len(detections)}; expected one entry for each image on both sides, empty where nothing is"
        )
    for i, found in enumerate(detections):
        if found.scores is None:
            raise ValueError(f"the detections of image {i} have no scores; read them with read_detections")
    return _concatenate(ground_truth, "ground truth", ()), _concatenate(detections, "detections", ("scores",))


def _concatenate(objects: Sequence[KittiObjects], what: str, last: tuple[str, ...]) -> _Pool:
    names = np.concatenate([entry.types for entry in objects])
    types = np.full(len(names), -1, dtype=np.int32)
    for code, name in enumerate(TYPES):
        types[names == name] = code
    fields = ("truncated", "occluded", "alpha", "boxes2d", "sizes", "location", "rotation_y", *last)
    columns = [np.concatenate([getattr(entry, name) for entry in objects]) for name in fields]
    pool = _Pool(
        types=types,
        columns=np.ascontiguousarray(np.column_stack(columns), dtype=np.float64),
        splits=np.cumsum([0, *map(len, objects)], dtype=np.int64),
    )
    wrong = (types < 0) | ~np.isfinite(pool.columns).all(axis=1)
    if wrong.any():
        first = int(wrong.argmax())
        image = int(np.searchsorted(pool.splits, first, side="right")) - 1
        raise ValueError(
            f"{what} of image {image}, object {first - pool.splits[image]}: {names[first]} "
            f"{pool.columns[first].tolist()}; expected one of {', '.join(TYPES)} and finite numbers"
        )
    return pool


def _scores(
    truths: _Pool,
    dets: _Pool,
    min_overlaps: Mapping[str, tuple[float, float, float]],
    truths_ignored: npt.NDArray[np.bool_],
    dets_ignored: npt.NDArray[np.bool_],
) -> KittiScores:
    pooled_truths = _kitti_eval.Objects(truths.types, truths.columns, truths_ignored, truths.splits, False)
    pooled_dets = _kitti_eval.Objects(dets.types, dets.columns, dets_ignored, dets.splits, True)
    has_alpha = not (dets.columns[:, 2] == _UNKNOWN_ALPHA).any()
    curves: dict[str, Curve] = {}
    not_evaluated: list[str] = []
    for cls in CLASSES:
        evaluated = _has_boxes(dets, cls)
        for number, metric in enumerate(METRICS):
            keys = [f"{cls}/{metric}/{difficulty}" for difficulty in DIFFICULTIES]
            if not evaluated[number]:
                not_evaluated += keys
                continue
            min_overlap = min_overlaps[cls][number]
            found = _kitti_eval.curves(
                pooled_truths,
                pooled_dets,
                type=TYPES.index(TYPE_OF_CLASS[cls]),
                neighbour=TYPES.index(NEIGHBOURS[cls]) if cls in NEIGHBOURS else -1,
                dont_care=TYPES.index("DontCare"),
                metric=number,
                min_overlap=min_overlap,
            )
            make = functools.partial(_curve, min_overlap, metric == "bbox" and has_alpha)
            curves.update(zip(keys, map(make, found), strict=True))
    objects = _count_objects(truths, dets, truths_ignored, dets_ignored)
    return KittiScores(len(truths.splits) - 1, curves, tuple(not_evaluated), objects)


def _count_objects(
    truths: _Pool,
    dets: _Pool,
    truths_ignored: npt.NDArray[np.bool_],
    dets_ignored: npt.NDArray[np.bool_],
) -> dict[str, ObjectCount]:
    counts = {}
    for cls in CLASSES:
        label = TYPES.index(TYPE_OF_CLASS[cls])
        objects = truths.columns[(truths.types == label) & ~truths_ignored]
        found = dets.columns[(dets.types == label) & ~dets_ignored]
        for difficulty in DIFFICULTIES:
            height, most_occluded, most_truncated = _LIMITS[difficulty]
            low = objects[:, 6] - objects[:, 4] <= height
            occluded, truncated = objects[:, 1] > most_occluded, objects[:, 0] > most_truncated
            counts[f"{cls}/{difficulty}"] = ObjectCount(
                labelled=len(objects),
                counted=int((~(low | occluded | truncated)).sum()),
                low=int(low.sum()),
                occluded=int(occluded.sum()),
                truncated=int(truncated.sum()),
                detected=len(found),
                detected_low=int((np.abs(found[:, 6] - found[:, 4]) < height).sum()),
            )
    return counts


def _has_boxes(dets: _Pool, cls: str) -> tuple[bool, bool, bool]:
    """By metric, whether one detection of the class at least has such a box."""
    rows = dets.columns[dets.types == TYPES.index(TYPE_OF_CLASS[cls])]
    height, width, length = rows[:, 7:10].T > 0
    x, y, z = rows[:, 10:13].T != _UNKNOWN_LOCATION
    ground = x & z & width & length
    return bool((rows[:, 3] >= 0).any()), bool(ground.any()), bool((ground & y & height).any())


def _curve(min_overlap: float, with_aos: bool, found: dict[str, Any]) -> Curve:
    def numbers(name: str) -> npt.NDArray[np.float64]:
        return np.array(found[name], dtype=np.float64)

    def counts(name: str) -> npt.NDArray[np.int64]:
        return np.array(found[name], dtype=np.int64)

    return Curve(
        n_gt=found["n_gt"],
        min_overlap=min_overlap,
        thresholds=numbers("thresholds"),
        tp=counts("tp"),
        fp=counts("fp"),
        fn=counts("fn"),
        recall=numbers("recall"),
        precision=numbers("precision"),
        similarity=numbers("similarity") if with_aos else None,
        aos=numbers("aos") if with_aos else None,
    )
