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
from bevkd2.nuscenes.layout import CLASS_NAMES
from bevkd2.structures import Boxes3D, to_global

MAX_BOXES = 500
"""A sample may have no more boxes than this in the official evaluation; those of lowest score go."""

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
