"""Detections in the official nuScenes results format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevkd2.evaluation.check_detections import check_detections
from bevkd2.nuscenes.attributes import attribute_of, predicted_attribute
from bevkd2.nuscenes.json_files import is_finite, is_vector, read_json, shortened
from bevkd2.nuscenes.layout import ATTRIBUTE_NAMES, CLASS_NAMES
from bevkd2.nuscenes.record_checks import is_rotation
from bevkd2.structures import Boxes3D, to_global

MAX_BOXES = 500
"""A sample may have no more boxes than this in the official evaluation; those of lowest score go."""

_REMEDY = "evaluate the model again"

_META = {
    "use_camera": True,
    "use_lidar": False,
    "use_radar": False,
    "use_map": False,
    "use_external": False,
}


@dataclass(frozen=True)
class SampleDetections:
    """What a model found in a sample, with what it takes to express it in the global frame.

    Attributes:
        boxes: Boxes3D (K, 9) in LIDAR_TOP or another frame with z up, on the CPU.
        scores: (K,) in [0, 1].
        labels: (K,) index into CLASS_NAMES.
        lidar2global: (4, 4) float64 from the boxes' frame.
        ego2global: (4, 4) float64 at the lidar's time.
        attributes: (K,) index into ATTRIBUTE_NAMES, NO_ATTRIBUTE for none; None where the model predicts no
            attributes: they then follow from class and speed.
    """

    boxes: Boxes3D
    scores: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    lidar2global: npt.NDArray[np.float64]
    ego2global: npt.NDArray[np.float64]
    attributes: npt.NDArray[np.int64] | None = None


def sample_results(
    sample_token: str, detections: SampleDetections, class_range: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Returns a sample's entry in the results file.

    Args:
        sample_token: the sample.
        detections: what was found in it.
        class_range: per class the distance from the ego in metres beyond which boxes are not evaluated, and
            so dropped.

    Returns:
        At most MAX_BOXES dicts, best score first.

    Raises:
        ValueError: detections that cannot be, see ``check_detections``; names the sample.
    """
    where = f"sample {sample_token!r}"
    check_detections(detections.boxes, detections.scores, detections.labels, len(CLASS_NAMES), where)
    boxes = to_global(detections.boxes, detections.lidar2global)
    distances = np.linalg.norm(boxes.translation[:, :2] - detections.ego2global[:2, 3], axis=1)
    attributes = _attribute_names(detections, np.linalg.norm(boxes.velocity, axis=1))
    results: list[dict[str, Any]] = []
    for k in np.argsort(-detections.scores, kind="stable"):
        name = CLASS_NAMES[detections.labels[k]]
        if distances[k] >= class_range[name]:
            continue
        results.append(
            {
                "sample_token": sample_token,
                "translation": boxes.translation[k].tolist(),
                "size": boxes.size[k].tolist(),
                "rotation": boxes.rotation[k].tolist(),
                "velocity": boxes.velocity[k].tolist(),
                "detection_name": name,
                "detection_score": float(detections.scores[k]),
                "attribute_name": attributes[k],
            }
        )
    return results[:MAX_BOXES]


def read_results(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Reads the results file.

    Args:
        path: ``results_nusc.json``.

    Returns:
        The detections by sample, each with the fields and the kinds of values that the format has.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, has no results or no meta, or a field of a detection is wrong; names
            sample, field and value.
    """
    content = read_json(path, _REMEDY)
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict):
        raise ValueError(
            f'{path} is no whole results file: it holds {shortened(content)}, expected {{"results": {{sample '
            f"token: [detection, ...], ...}}}}; {_REMEDY}"
        )
    for token, rows in results.items():
        if not isinstance(rows, list):
            raise ValueError(
                f"{path}, sample {shortened(token)}: results are {shortened(rows)}, expected a list of "
                f"detections; {_REMEDY}"
            )
        for place, row in enumerate(rows):
            _check_row(row, token, f"{path}, sample {shortened(token)}, detection {place}")
    if not isinstance(content.get("meta"), dict):
        raise ValueError(
            f"{path}: meta is {shortened(content.get('meta'))}, expected an object such as "
            f"{json.dumps(_META)}, without which the official evaluation refuses the file; add it"
        )
    return results


def _check_row(row: Any, token: str, where: str) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {shortened(row)}, expected an object; {_REMEDY}")
    size: Any = row.get("size")
    expected = {
        "sample_token": (row.get("sample_token") == token, "the token that it is listed under"),
        "translation": (is_vector(row.get("translation"), 3), "three finite numbers"),
        "size": (is_vector(size, 3) and min(size) > 0, "positive width, length and height in metres"),
        "rotation": (is_rotation(row.get("rotation")), "a quaternion w, x, y, z of length 1"),
        "velocity": (is_vector(row.get("velocity"), 2), "two finite numbers"),
        "detection_name": (row.get("detection_name") in CLASS_NAMES, f"one of {', '.join(CLASS_NAMES)}"),
        "detection_score": (is_finite(row.get("detection_score")), "a finite number"),
        "attribute_name": (row.get("attribute_name") in ("", *ATTRIBUTE_NAMES), "an attribute, or nothing"),
    }
    for field, (fits, what) in expected.items():
        if not fits:
            raise ValueError(f"{where}: {field} is {shortened(row.get(field))}, expected {what}; {_REMEDY}")


def _attribute_names(detections: SampleDetections, speeds: npt.NDArray[np.float64]) -> list[str]:
    """Returns the attribute of each detection, predicted or by class and speed (m/s)."""
    names = [CLASS_NAMES[label] for label in detections.labels]
    if detections.attributes is None:
        return [attribute_of(name, float(speed)) for name, speed in zip(names, speeds, strict=True)]
    return [predicted_attribute(name, int(a)) for name, a in zip(names, detections.attributes, strict=True)]


def write_results(
    path: Path, detections: Mapping[str, SampleDetections], class_range: Mapping[str, float]
) -> int:
    """Writes the results file, a sample at a time.

    Args:
        path: the JSON file.
        detections: sample token to what was found; every sample of the split, even if nothing was.
        class_range: see ``sample_results``.

    Returns:
        The number of boxes written.
    """
    count = 0
    with path.open("w") as file:
        file.write(f'{{"meta": {json.dumps(_META)}, "results": {{')
        for i, (token, found) in enumerate(detections.items()):
            results = sample_results(token, found, class_range)
            count += len(results)
            file.write(f"{', ' if i else ''}{json.dumps(token)}: {json.dumps(results)}")
        file.write("}}\n")
    return count
