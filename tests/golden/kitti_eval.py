"""KITTI's score against results of the official C++ evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bevkd2.kitti.ap import Curve, KittiScores, kitti_scores
from bevkd2.kitti.labels import read_detections, read_labels
from tests.golden.report import Differences, Row

# Arrays of a curve, by the name that they have in the recordings and in ours.
_OF_A_CURVE = ("thresholds", "recall", "precision", "tp", "fp", "fn", "similarity", "aos")
# Sums over all true positives, in an order that nobody fixes: relative to their size.
_SUMS = ("similarity",)
# What a set has only if every detection has an alpha.
_OF_ORIENTATION = {"AOS_R40", "similarity", "aos"}
# Relative, but nowhere more than this in percent or parts of 1; beneath the floor only rounding is left.
_FLOOR = 1e-12
_MOST = 1e-9
TOLERANCES = {
    "sets evaluated": 0.0,
    "AP_R40": 1e-9,
    "AP_R11": 1e-9,
    "AOS_R40": 1e-9,
    "n_gt": 0.0,
    **dict.fromkeys(("thresholds", "recall", "precision"), 1e-9),
    **dict.fromkeys(("tp", "fp", "fn"), 0.0),
    **dict.fromkeys(("similarity", "aos"), 1e-9),
}


def compare(directory: Path) -> list[Row]:
    """Evaluates every set in ``directory``/kitti_eval.

    Args:
        directory: holds kitti_eval/<set>/{label_2/*.txt,dets/data/*.txt,results.json}.

    Returns:
        The largest difference of each kind of number over all sets; percent for AP.

    Raises:
        FileNotFoundError: there is no set.
    """
    recordings = sorted((directory / "kitti_eval").glob("*/results.json"))
    if not recordings:
        raise FileNotFoundError(f"{directory}/kitti_eval has no folder with a results.json")
    differences = Differences(TOLERANCES, required=TOLERANCES.keys() - _OF_ORIENTATION)
    for recording in recordings:
        _compare_set(differences, recording)
    return differences.rows()


def _compare_set(differences: Differences, recording: Path) -> None:
    golden = json.loads(recording.read_text())
    folder = recording.parent
    scores = kitti_scores(
        [read_labels(folder / "label_2" / f"{frame}.txt") for frame in golden["frames"]],
        [read_detections(folder / "dets" / "data" / f"{frame}.txt") for frame in golden["frames"]],
        min_overlaps={cls: (minimum,) * 3 for cls, minimum in golden["min_overlap"].items()},
    )
    same = set(scores.curves) == set(golden["detail"]) and set(scores.not_evaluated) == set(
        golden["not_evaluated"]
    )
    differences.note("sets evaluated", 0.0 if same else float("inf"))
    if not same:
        return
    _compare_averages(differences, scores, golden)
    for key, recorded in golden["detail"].items():
        _compare_curve(differences, scores.curves[key], recorded)


def _compare_averages(differences: Differences, scores: KittiScores, golden: Mapping[str, Any]) -> None:
    ours = {"AP_R40": scores.ap_r40(), "AP_R11": scores.ap_r11(), "AOS_R40": scores.aos_r40()}
    for quantity, values in ours.items():
        # What is 0 / 0 has no value on either side.
        recorded = {key: value for key, value in golden.get(quantity, {}).items() if _defined(value)}
        values = {key: value for key, value in values.items() if _defined(value)}
        if values.keys() != recorded.keys():
            differences.note(quantity, float("inf"))
            continue
        for key, value in values.items():
            differences.add_close(quantity, value, recorded[key], _FLOOR, at_most=_MOST)


def _defined(value: float | None) -> bool:
    return value is not None and value == value


def _compare_curve(differences: Differences, curve: Curve, golden: Mapping[str, Any]) -> None:
    differences.add("n_gt", float(curve.n_gt), float(golden["n_gt"]))
    for name in _OF_A_CURVE:
        ours = getattr(curve, name)
        if ours is None:  # the official tool has zeros where it does not evaluate the orientation
            if np.any(golden.get(name) or 0):
                differences.note(name, float("inf"))
            continue
        # 0 / 0 is the same on both sides: no other number is negative.
        recorded = np.nan_to_num(np.asarray(golden[name], dtype=np.float64), nan=-1.0)
        ours = np.nan_to_num(np.asarray(ours, dtype=np.float64), nan=-1.0)
        if TOLERANCES[name] == 0:
            differences.add(name, ours, recorded)
        else:
            most = float("inf") if name in _SUMS else _MOST
            differences.add_close(name, ours, recorded, _FLOOR, at_most=most)
