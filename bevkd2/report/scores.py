"""What an evaluation wrote: the devkit's files on nuScenes, KITTI's scores, or the scalars of a training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bevkd2.engine.metrics import Metrics
from bevkd2.nuscenes.layout import TP_ERRORS

NO_SCORES = ("teacher/", "distill_raw/")
"""Scalars of a training whose names have a slash as scores do, by how they begin: the teacher's, losses."""

_ERROR_UNITS = {"mATE": "m", "mASE": "1 - IoU", "mAOE": "rad", "mAVE": "m/s", "mAAE": "1 - accuracy"}
_CURVE_DISTANCE = "2.0"  # metres: the devkit's threshold for true positive errors
_KITTI_METRICS = {"3d": "3D", "bev": "BEV", "bbox": "2D"}


@dataclass(frozen=True)
class Evaluation:
    """The scores of one model on one split.

    Attributes:
        kind: whose rules they follow; scores of two kinds cannot be compared. "" where only the training
            logged them.
        digits: behind the point, of all.
        scores: column -> value; None where it is not defined.
        classes: title of a chart -> class -> average precision.
        full: of a bar of ``classes``.
        errors: name with unit -> class -> true positive error; empty where the rules have none.
        curves: title -> recall, precision.
        lacks: what the evaluation did not write, as sentences.
    """

    kind: str
    digits: int
    scores: Mapping[str, float | None]
    classes: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    full: float = 1.0
    errors: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    curves: Mapping[str, list[tuple[float, float]]] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()


def read_evaluation(folder: Path) -> Evaluation | None:
    """Reads what the evaluation of a split wrote to its folder.

    Args:
        folder: such as ``OUTPUT_DIR/inference``.

    Returns:
        None where none of the files is there that the built-in formats write.

    Raises:
        ValueError: a file is not what an evaluation writes; names it.
    """
    for name, read in (("metrics_summary.json", _nuscenes), ("kitti_scores.json", _kitti)):
        if (folder / name).is_file():
            try:
                return read(folder, read_json(folder / name))
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{folder / name} is not what an evaluation writes ({error!r}); run the evaluation again"
                ) from error
    return None


def last_scores(metrics: Metrics) -> Evaluation | None:
    """Returns the scores that a training logged last; None where it logged none."""
    found = {
        name: number(value)
        for row in metrics.rows.values()
        for name, value in row.items()
        if "/" in name and not name.startswith(NO_SCORES)
    }
    if not found:
        return None
    return Evaluation(
        "",
        3,
        found,
        lacks=("no AP per class: the evaluation's files are gone, or its data format writes none",),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Returns the content of a JSON file.

    Args:
        path: the file, in UTF-8.

    Raises:
        ValueError: it is no JSON mapping; names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file ({error}); it was cut off, or is something else") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a mapping")
    return content


def number(value: object) -> float | None:
    """Returns a finite number as a float; None for anything else.

    Args:
        value: of a JSON file; true and false are no numbers.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _nuscenes(folder: Path, summary: Mapping[str, Any]) -> Evaluation:
    errors = {name: f"{name} ({_ERROR_UNITS[name]})" for name in TP_ERRORS}
    means = {title: number(summary["tp_errors"][TP_ERRORS[name]]) for name, title in errors.items()}
    by_class = summary["label_tp_errors"]
    curves, lacks = {}, []
    details = folder / "metrics_details.json"
    if details.is_file():
        for key, curve in read_json(details).items():
            name, _, distance = key.rpartition(":")
            if distance == _CURVE_DISTANCE:
                curves[name] = _points(curve["recall"], curve["precision"])
    else:
        lacks.append(f"{folder.name} has no metrics_details.json: an earlier version scored it")
    return Evaluation(
        kind="nuScenes",
        digits=3,
        scores={"mAP": number(summary["mean_ap"]), "NDS": number(summary["nd_score"]), **means},
        classes={
            "AP, mean over 0.5, 1, 2 and 4 m": {c: number(ap) for c, ap in summary["mean_dist_aps"].items()}
        },
        errors={
            title: {c: number(of[TP_ERRORS[name]]) for c, of in by_class.items()}
            for name, title in errors.items()
        },
        curves=curves,
        lacks=tuple(lacks),
    )


def _kitti(folder: Path, report: Mapping[str, Any]) -> Evaluation:
    ap = {tuple(key.split("/")): number(value) for key, value in report["AP_R40"].items()}
    aos = {tuple(key.split("/")): number(value) for key, value in report["AOS_R40"].items()}
    names = list(dict.fromkeys(key[0] for key in ap))
    scores: dict[str, float | None] = {}
    for name in names:
        levels = ("easy", "moderate", "hard")
        scores |= {f"{name} 3D {level}": ap.get((name, "3d", level)) for level in levels}
        scores[f"{name} BEV moderate"] = ap.get((name, "bev", "moderate"))
        scores[f"{name} AOS moderate"] = aos.get((name, "bbox", "moderate"))
    everything = dict.fromkeys([*names, *(key.split("/")[0] for key in report["not_evaluated"])])
    precision = report.get("precision", {})
    curves = {
        f"{name}, {_KITTI_METRICS[metric]} moderate": _points(
            [k / (len(values) - 1) for k in range(len(values))], values
        )
        for name in names
        for metric in ("3d", "bev")
        if (values := precision.get(f"{name}/{metric}/moderate"))
    }
    lacks = [] if "precision" in report else [f"{folder.name} has no curves: an earlier version scored it"]
    return Evaluation(
        kind="KITTI",
        digits=2,
        scores=scores,
        classes={
            f"AP|R40, {title} moderate, percent": {
                name: ap.get((name, metric, "moderate")) for name in everything
            }
            for metric, title in _KITTI_METRICS.items()
        },
        full=100.0,
        curves=curves,
        lacks=tuple(lacks),
    )


def _points(recall: Iterable[object], precision: Iterable[object]) -> list[tuple[float, float]]:
    pairs = [(number(r), number(p)) for r, p in zip(recall, precision, strict=True)]
    return [(r, p) for r, p in pairs if r is not None and p is not None]
