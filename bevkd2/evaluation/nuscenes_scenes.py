"""The nuScenes score without one scene at a time.

Detections are matched with objects within their sample, so the matches are made once, and a score without a
scene leaves out its detections and objects. The devkit would match everything again for every scene.
"""

from __future__ import annotations

import codecs
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevkd2.evaluation.left_out import LeftOut
from bevkd2.evaluation.nuscenes import (
    UNDEFINED,
    filtered_boxes,
    named_scores,
    no_match,
    read_tables,
    tokens_of_split,
)
from bevkd2.evaluation.nuscenes_results import MAX_BOXES, read_results
from bevkd2.nuscenes.devkit import (
    TP_METRICS,
    DetectionBox,
    DetectionConfig,
    DetectionMetricData,
    DetectionMetrics,
    EvalBoxes,
    attr_acc,
    calc_ap,
    calc_tp,
    center_distance,
    config_factory,
    cummean,
    scale_iou,
    velocity_l2,
    yaw_diff,
)
from bevkd2.nuscenes.json_files import shortened
from bevkd2.nuscenes.tables import NuScenesTables
from bevkd2.structures.matches import ground_distances, match_in_order

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassMatches:
    """The detections of a class in descending order of their scores, and what they match.

    Attributes:
        scores: (K,).
        scenes: (K,) index of the scene.
        objects: (S,) objects to be found in each scene.
        matched: distance threshold (metres) -> (K,) whether the detection matches an object.
        errors: the devkit's name of an error -> (K,) at the threshold for errors; NaN where it is not
            defined.
    """

    scores: Floats
    scenes: npt.NDArray[np.int64]
    objects: npt.NDArray[np.int64]
    matched: dict[float, npt.NDArray[np.bool_]]
    errors: dict[str, Floats] = field(default_factory=dict)


class NuScenesScenes:
    """A :class:`LeftOutScorer` of ``results_nusc.json``; the parts are scenes."""

    def __init__(self, *, root: str, version: str, split: str) -> None:
        """Chooses what to score against; arguments as ``NuScenesEvaluator``."""
        self._root, self._version, self._split = root, version, split
        self._config: DetectionConfig = config_factory("detection_cvpr_2019")

    def check(self, metrics: Sequence[str]) -> None:
        """Checks names of metrics.

        Args:
            metrics: the names.

        Raises:
            ValueError: one is unknown.
        """
        known = named_scores(no_match(self._config), set())
        if unknown := [name for name in metrics if name not in known]:
            raise ValueError(f"metric {unknown[0]!r} is unknown; nuScenes' are {', '.join(known)}")

    def score(self, folder: Path, metrics: Sequence[str], plain: Sequence[str] = ()) -> LeftOut:
        """Scores the split, and without each scene.

        Args:
            folder: where the evaluation has written ``results_nusc.json``.
            metrics: those that are also wanted without each scene.
            plain: those that are not.

        Returns:
            The scores; ``units`` are the names of the scenes, in the order of the results.

        Raises:
            ValueError: an unknown metric.
        """
        self.check([*metrics, *plain])
        tables = read_tables(self._root, self._version, self._split)
        path = folder / "results_nusc.json"
        samples = read_results(path)
        self._check(tables, samples, path)
        scene_of = {token: tables.get("sample", token)["scene_token"] for token in samples}
        scenes = {token: tables.get("scene", token)["name"] for token in dict.fromkeys(scene_of.values())}
        if not any(samples.values()):  # the devkit fails
            scores = named_scores(no_match(self._config), set())
            without = {name: [scores[name]] * len(scenes) for name in metrics}
            return LeftOut({n: scores[n] for n in (*metrics, *plain)}, tuple(scenes.values()), without)
        boxes = filtered_boxes(tables, self._config, path, self._split)
        numbers = {token: number for number, token in enumerate(scenes)}
        places = {token: numbers[scene] for token, scene in scene_of.items()}
        matches = match(boxes.gt_boxes, boxes.pred_boxes, places, self._config)
        scores = scores_without(matches, None, self._config)
        lacking = [scores_without(matches, number, self._config) for number in range(len(scenes))]
        return LeftOut(
            {name: scores[name] for name in (*metrics, *plain)},
            tuple(scenes.values()),
            {name: [found[name] for found in lacking] for name in metrics},
        )

    def _check(self, tables: NuScenesTables, samples: Mapping[str, list[Any]], path: Path) -> None:
        """Checks what the devkit asserts of a results file.

        Raises:
            ValueError: samples are missing or of another split, there are too many boxes in one, or the file
                begins with a byte-order mark, which the devkit does not read.
        """
        with path.open("rb") as file:
            if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
                raise ValueError(
                    f"{path} begins with a byte-order mark, which the official evaluation does not read; "
                    "save it as UTF-8 without one"
                )
        expected = tokens_of_split(tables, self._split)
        if different := expected ^ samples.keys():
            raise ValueError(
                f"{path} has {len(samples)} samples, the split {self._split!r} {len(expected)}; they differ, "
                f"for example in {shortened(min(different))}. Evaluate the model on this split, or name the "
                "other one in DATASETS.TEST"
            )
        for token, rows in samples.items():
            if len(rows) > MAX_BOXES:
                raise ValueError(
                    f"{path}, sample {shortened(token)}: {len(rows)} detections, expected {MAX_BOXES} at "
                    "most, as in the official evaluation; leave out those of lowest score"
                )


def match(
    truths: EvalBoxes, detections: EvalBoxes, scenes: Mapping[str, int], config: DetectionConfig
) -> dict[str, ClassMatches]:
    """Matches detections as the devkit's ``accumulate`` does.

    Args:
        truths: the objects that count.
        detections: the detections that count.
        scenes: sample token -> index of its scene.
        config: the devkit's settings.

    Returns:
        The matches by class.
    """
    count = max(scenes.values()) + 1
    objects: dict[str, dict[str, list[DetectionBox]]] = defaultdict(lambda: defaultdict(list))
    found: dict[str, list[DetectionBox]] = defaultdict(list)
    for token in truths.sample_tokens:
        for box in truths[token]:
            objects[box.detection_name][token].append(box)
    for box in detections.all:
        found[box.detection_name].append(box)
    matches = {}
    for name in config.class_names:
        of_class = objects[name]
        total = np.zeros(count, dtype=np.int64)
        for token, there in of_class.items():
            total[scenes[token]] += len(there)
        matches[name] = _match_class(name, of_class, found[name], scenes, total, config)
    return matches


def _match_class(
    name: str,
    objects: Mapping[str, Sequence[DetectionBox]],
    found: Sequence[DetectionBox],
    scenes: Mapping[str, int],
    total: npt.NDArray[np.int64],
    config: DetectionConfig,
) -> ClassMatches:
    # Of equal scores the devkit takes the last one first.
    order = sorted(range(len(found)), key=lambda i: (found[i].detection_score, i), reverse=True)
    boxes = [found[i] for i in order]
    matched = {threshold: np.zeros(len(boxes), dtype=np.bool_) for threshold in config.dist_ths}
    errors = {error: np.full(len(boxes), np.nan) for error in TP_METRICS}
    by_sample: dict[str, list[int]] = defaultdict(list)
    for place, box in enumerate(boxes):
        by_sample[box.sample_token].append(place)
    for token, places in by_sample.items():
        there = objects.get(token, ())
        if not there:
            continue
        ours = np.array([boxes[place].translation[:2] for place in places])
        theirs = np.array([box.translation[:2] for box in there])
        distances = ground_distances(ours, theirs)
        for threshold, hits in matched.items():
            for place, nearest in zip(places, match_in_order(distances, threshold), strict=True):
                if nearest >= 0:
                    hits[place] = True
                    if threshold == config.dist_th_tp:
                        for error, value in _errors(name, there[nearest], boxes[place]).items():
                            errors[error][place] = value
    return ClassMatches(
        scores=np.array([box.detection_score for box in boxes], dtype=np.float64),
        scenes=np.array([scenes[box.sample_token] for box in boxes], dtype=np.int64),
        objects=total,
        matched=matched,
        errors=errors,
    )


def _errors(name: str, truth: DetectionBox, found: DetectionBox) -> dict[str, float]:
    return {
        "trans_err": center_distance(truth, found),
        "vel_err": velocity_l2(truth, found),
        "scale_err": 1 - scale_iou(truth, found),
        "orient_err": yaw_diff(truth, found, period=np.pi if name == "barrier" else 2 * np.pi),
        "attr_err": 1 - attr_acc(truth, found),
    }


def scores_without(
    matches: Mapping[str, ClassMatches], scene: int | None, config: DetectionConfig
) -> dict[str, float]:
    """Computes the scores of all scenes but one.

    Args:
        matches: by class, of all scenes.
        scene: index of the scene that is left out; None: none is.
        config: the devkit's settings.

    Returns:
        Scores by name.
    """
    metrics, present = DetectionMetrics(config), set()
    for name, found in matches.items():
        kept = np.ones(len(found.scores), dtype=np.bool_) if scene is None else found.scenes != scene
        objects = int(found.objects.sum() - (0 if scene is None else found.objects[scene]))
        if objects:
            present.add(name)
        curves = {th: _curve(found, kept, objects, th) for th in config.dist_ths}
        for threshold, curve in curves.items():
            metrics.add_label_ap(name, threshold, calc_ap(curve, config.min_recall, config.min_precision))
        for error in TP_METRICS:
            undefined = error in UNDEFINED.get(name, ())
            value = np.nan if undefined else calc_tp(curves[config.dist_th_tp], config.min_recall, error)
            metrics.add_label_tp(name, error, value)
    return named_scores(metrics, present)


def _curve(
    found: ClassMatches, kept: npt.NDArray[np.bool_], objects: int, threshold: float
) -> DetectionMetricData:
    """Returns what the devkit's ``accumulate`` does, of the detections that are kept."""
    hits, scores = found.matched[threshold][kept], found.scores[kept]
    if objects == 0 or not hits.any():
        return DetectionMetricData.no_predictions()
    true, false = np.cumsum(hits).astype(float), np.cumsum(~hits).astype(float)
    recall = np.linspace(0, 1, DetectionMetricData.nelem)
    precision = np.interp(recall, true / objects, true / (true + false), right=0)
    confidence = np.interp(recall, true / objects, scores, right=0)
    errors: dict[str, Any] = {}
    for error in TP_METRICS:
        means = cummean(found.errors[error][kept][hits])
        errors[error] = np.interp(confidence[::-1], scores[hits][::-1], means[::-1])[::-1]
    return DetectionMetricData(recall=recall, precision=precision, confidence=confidence, **errors)
