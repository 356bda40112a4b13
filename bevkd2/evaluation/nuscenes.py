"""The official nuScenes detection score, by nuscenes-devkit."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from bevkd2.d2 import DatasetEvaluator, comm
from bevkd2.evaluation.check_detections import check_detections
from bevkd2.evaluation.nuscenes_results import SampleDetections, write_results
from bevkd2.nuscenes.devkit import (
    TP_METRICS,
    DetectionBox,
    DetectionConfig,
    DetectionEval,
    DetectionMetricData,
    DetectionMetricDataList,
    DetectionMetrics,
    EvalBoxes,
    add_center_dist,
    category_to_detection_name,
    config_factory,
    filter_eval_boxes,
    load_gt_of_sample_tokens,
)
from bevkd2.nuscenes.json_files import file_states
from bevkd2.nuscenes.layout import CLASS_NAMES, TP_ERRORS
from bevkd2.nuscenes.splits import scenes_of_split
from bevkd2.nuscenes.tables import NuScenesTables

logger = logging.getLogger(__name__)

# What the devkit does not define: traffic cones have no heading, and neither they nor barriers move or have
# attributes.
UNDEFINED = {
    "traffic_cone": ("orient_err", "vel_err", "attr_err"),
    "barrier": ("vel_err", "attr_err"),
}


class NuScenesScorer:
    """Writes ``results_nusc.json`` of a split and scores it as the nuScenes benchmark does."""

    def __init__(self, *, root: str | Path, version: str, split: str, output_dir: str | Path) -> None:
        """Chooses what to score against; arguments as ``NuScenesEvaluator``."""
        self._root, self._version, self._split = str(root), version, split
        self._output_dir = Path(output_dir)
        self._config: DetectionConfig = config_factory("detection_cvpr_2019")

    @property
    def class_range(self) -> Mapping[str, float]:
        """Per class the distance from the ego in metres up to which boxes count."""
        ranges: Mapping[str, float] = self._config.class_range
        return ranges

    def score(self, detections: Mapping[str, SampleDetections]) -> dict[str, dict[str, float]]:
        """Writes and scores.

        Args:
            detections: sample token to what was found; every sample of the split.

        Returns:
            As ``NuScenesEvaluator.evaluate`` on the main process.

        Raises:
            ValueError: samples of the split are missing or foreign, or detections cannot be.
        """
        started = time.perf_counter()
        tables = read_tables(self._root, self._version, self._split)
        self._check_samples(tables, set(detections))
        self._output_dir.mkdir(parents=True, exist_ok=True)
        path = self._output_dir / "results_nusc.json"
        count = write_results(path, detections, self.class_range)
        metrics, curves, present = self._score(tables, path, count, set(detections))
        summary = self._output_dir / "metrics_summary.json"
        summary.write_text(json.dumps(metrics.serialize(), indent=2))
        (self._output_dir / "metrics_details.json").write_text(json.dumps(curves.serialize()))
        scores = named_scores(metrics, present)
        logger.info(
            "nuScenes score of %s (%d samples, %d boxes, %.1f s):\n%s",
            self._split,
            len(detections),
            count,
            time.perf_counter() - started,
            _table(metrics, scores),
        )
        self._say_absent(present, scores)
        return OrderedDict(bbox=scores)

    def _say_absent(self, present: set[str], scores: Mapping[str, float]) -> None:
        if len(present) < len(CLASS_NAMES):
            logger.info(
                "%d of %d classes have ground truth in %s; the official mAP counts the others as 0, so it is "
                "%.3f at most; the mean over those present is %.3f",
                len(present),
                len(CLASS_NAMES),
                self._split,
                len(present) / len(CLASS_NAMES),
                scores["mAP_present"],
            )

    def _check_samples(self, tables: NuScenesTables, tokens: set[str]) -> None:
        expected = tokens_of_split(tables, self._split)
        if tokens != expected:
            example = next(iter(expected - tokens or tokens - expected))
            raise ValueError(
                f"split {self._split!r} of {self._version} has {len(expected)} samples; "
                f"{len(expected - tokens)} of them were not evaluated and {len(tokens - expected)} others "
                f"were (e.g. {example!r}). The score needs the whole split: use build_test_loader with this "
                "split"
            )

    def _score(
        self, tables: NuScenesTables, path: Path, count: int, tokens: set[str]
    ) -> tuple[DetectionMetrics, DetectionMetricDataList, set[str]]:
        """Returns the devkit's metrics, its curves, and the classes with ground truth after its filters."""
        # The devkit fails where one side has no boxes at all; what it would say is known.
        annotated = any(
            record["sample_token"] in tokens and category_to_detection_name(record["category_name"])
            for record in tables.sample_annotation
        )
        if not annotated or count == 0:
            what = "detections in range" if annotated else "annotations of the ten classes"
            logger.warning("split %s has no %s: every AP is zero", self._split, what)
            return no_match(self._config), _no_curves(self._config), set()
        evaluation = filtered_boxes(tables, self._config, path, self._split)
        metrics, curves = evaluation.evaluate()
        return metrics, curves, {box.detection_name for box in evaluation.gt_boxes.all}


class NuScenesEvaluator(DatasetEvaluator):
    """Collects detections, writes ``results_nusc.json``, and scores it as the nuScenes benchmark does."""

    def __init__(self, *, root: str | Path, version: str, split: str, output_dir: str | Path) -> None:
        """Chooses what to score against.

        Args:
            root: the dataset's root directory.
            version: name of the tables.
            split: an official split or one of the version's ``splits.json``; all its samples must be
                processed.
            output_dir: gets ``results_nusc.json``, and the devkit's ``metrics_summary.json`` and
                ``metrics_details.json`` (the curves).
        """
        self._scorer = NuScenesScorer(root=root, version=version, split=split, output_dir=output_dir)
        self._detections: dict[str, SampleDetections] = {}

    def reset(self) -> None:
        """Removes all detections."""
        self._detections = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Collects the detections of a batch.

        Args:
            inputs: samples, of which sample_token, lidar2global and ego2global are read.
            outputs: for each of them boxes (Boxes3D in LIDAR_TOP), scores (K,) and labels (K,).

        Raises:
            ValueError: detections that cannot be, see ``check_detections``; names the sample.
        """
        for sample, found in zip(inputs, outputs, strict=True):
            boxes = found["boxes"].to("cpu")
            scores = found["scores"].detach().cpu().double().numpy()
            labels = found["labels"].cpu().numpy()
            where = f"sample {sample['sample_token']!r}"
            check_detections(boxes, scores, labels, len(CLASS_NAMES), where)
            self._detections[sample["sample_token"]] = SampleDetections(
                boxes=boxes,
                scores=scores,
                labels=labels,
                lidar2global=np.asarray(sample["lidar2global"], dtype=np.float64),
                ego2global=np.asarray(sample["ego2global"], dtype=np.float64),
            )

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Scores what all processes collected.

        Returns:
            On the main process {"bbox": metrics}, else None. As the devkit gives them: mAP, NDS and
            AP_<class> in [0, 1]; mATE in metres, mASE 1 - IoU, mAOE in radians, mAVE in m/s, mAAE 1 -
            accuracy. mAP_present, mATE_present and so on, the project's own, are the means over the classes
            that have ground truth: the devkit counts the AP of the others as 0, and their errors as 1.

        Raises:
            ValueError: samples of the split are missing or foreign, or detections are not finite.
        """
        gathered = comm.gather(self._detections, dst=0)
        if not comm.is_main_process():
            return None
        detections = {token: found for part in gathered for token, found in part.items()}
        return self._scorer.score(detections)


def filtered_boxes(
    tables: NuScenesTables, config: DetectionConfig, results: Path, split: str
) -> DetectionEval:
    """Returns the devkit's evaluation, with the boxes that count: ``gt_boxes`` and ``pred_boxes``.

    Args:
        tables: of the data set.
        config: the devkit's settings.
        results: ``results_nusc.json``, with one box at least; the devkit makes a folder beside it.
        split: its samples, all of them in ``results``.
    """
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that `verbose` does not silence
        return DetectionEval(tables, config, str(results), split, str(results.parent), verbose=False)


def tokens_of_split(tables: NuScenesTables, split: str) -> set[str]:
    """Returns the tokens of the samples of a split."""
    scenes = set(scenes_of_split(tables, split))
    names = {scene["token"]: scene["name"] for scene in tables.scene}
    return {sample["token"] for sample in tables.sample if names[sample["scene_token"]] in scenes}


def annotated_boxes(tables: NuScenesTables, tokens: Sequence[str]) -> EvalBoxes:
    """Returns the annotations of samples that the devkit's evaluation counts.

    Args:
        tables: of the data set.
        tokens: of the samples; all of them must be in the tables.
    """
    with contextlib.redirect_stderr(io.StringIO()):  # as above
        boxes = load_gt_of_sample_tokens(tables, list(tokens), DetectionBox, verbose=False)
    return boxes_that_count(tables, boxes)


def boxes_that_count(tables: NuScenesTables, boxes: EvalBoxes) -> EvalBoxes:
    """Returns the boxes that the devkit's evaluation keeps: by range, points and bicycle racks.

    Args:
        tables: of the data set.
        boxes: annotations or detections; they are changed.
    """
    if not boxes.all:  # the devkit fails without a box
        return boxes
    config = config_factory("detection_cvpr_2019")
    return filter_eval_boxes(tables, add_center_dist(tables, boxes), config.class_range, verbose=False)


def read_tables(root: str, version: str, split: str) -> NuScenesTables:
    """Returns the tables of a split, read once in a process as long as the files do not change.

    Args:
        root: the data set's root.
        version: name of the tables.
        split: an official split or one of the version's ``splits.json``.
    """
    return _tables(root, version, split, str(file_states(Path(root) / version, "*.json")))


@functools.lru_cache(maxsize=2)  # two splits of DATASETS.TEST take turns
def _tables(root: str, version: str, split: str, _states: str) -> NuScenesTables:
    """Returns the tables, read once in a process; ``_states`` tells states of the files apart."""
    return NuScenesTables(root, version, split)


def no_match(config: DetectionConfig) -> DetectionMetrics:
    """Returns what the devkit gives for a class without matches, for all classes.

    Args:
        config: names the classes and the distances of a match.

    Returns:
        AP 0, and errors of 1, or NaN where the class has no such error.
    """
    metrics = DetectionMetrics(config)
    for name in config.class_names:
        for threshold in config.dist_ths:
            metrics.add_label_ap(name, threshold, 0.0)
        for error in TP_METRICS:
            metrics.add_label_tp(name, error, float("nan") if error in UNDEFINED.get(name, ()) else 1.0)
    return metrics


def _no_curves(config: DetectionConfig) -> DetectionMetricDataList:
    """Returns the devkit's curves of a class without predictions, for all classes."""
    curves = DetectionMetricDataList()
    for name in config.class_names:
        for threshold in config.dist_ths:
            curves.set(name, threshold, DetectionMetricData.no_predictions())
    return curves


def named_scores(metrics: DetectionMetrics, present: set[str]) -> dict[str, float]:
    """Returns the scores by the names that ``NuScenesEvaluator.evaluate`` gives them.

    Args:
        metrics: the devkit's.
        present: classes that have ground truth.
    """
    scores = {"mAP": float(metrics.mean_ap), "NDS": float(metrics.nd_score)}
    scores.update({name: float(metrics.tp_errors[error]) for name, error in TP_ERRORS.items()})
    scores.update({f"AP_{name}": float(metrics.mean_dist_aps[name]) for name in CLASS_NAMES})
    of_present = [scores[f"AP_{name}"] for name in CLASS_NAMES if name in present]
    scores["mAP_present"] = _defined_mean(of_present)
    for name, error in TP_ERRORS.items():
        scores[f"{name}_present"] = _defined_mean([metrics.get_label_tp(label, error) for label in present])
    return scores


def _defined_mean(values: Sequence[float]) -> float:
    """Returns the mean of the values that are not NaN, or NaN if there is none."""
    defined = [float(value) for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else float("nan")


def _table(metrics: DetectionMetrics, scores: dict[str, float]) -> str:
    """Returns AP per class and true positive errors, and their means, as text."""
    rows = [
        [name, scores[f"AP_{name}"], *(metrics.get_label_tp(name, error) for error in TP_METRICS)]
        for name in CLASS_NAMES
    ]
    rows.append(["mean", scores["mAP"], *(scores[name] for name in TP_ERRORS)])
    headers = ["class", "AP", "ATE (m)", "ASE", "AOE (rad)", "AVE (m/s)", "AAE"]
    return f"{tabulate(rows, headers=headers, floatfmt='.3f')}\nNDS {scores['NDS']:.4f}"
