"""2,340 mutated files of every kind that a user may hand over, see :mod:`tests.fuzz`."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.runner import run_all
from tests.reliability.report import Row

GROUPS = {
    "tables, splits.json and CAN bus of nuScenes": ("nuScenes tables", "splits.json", "CAN bus"),
    "images of nuScenes (JPEG) and KITTI (PNG)": ("JPEG", "PNG"),
    "calibrations, labels, ImageSets and detections of KITTI": ("calib", "labels", "ImageSets", "detections"),
    "YAML of configs and experiments": ("config", "experiment"),
    "weights (.pth, .safetensors) and runs to be resumed": (
        "weights.pth",
        "weights.safetensors",
        "resumed run",
    ),
    "exported models (.onnx)": ("exported model", "exported multi-view model"),
    "results files of nuScenes": ("results_nusc.json",),
    "published weights for import-weights and files of a teacher's cache": (
        "published weights",
        "teacher cache",
    ),
}


def prove(place: Path, share: int = 1) -> list[Row]:
    """Runs all cases, or the first of so many; one survives by a right result or one readable error."""
    rows = []
    for what, names in GROUPS.items():
        row = Row(f"mutated {what}: a right result, or one error that names the file")
        for tally in run_all(place, share, names):
            row.cases += tally.outcomes.total()
            row.failures += tally.findings
        row.survived = row.cases - len(row.failures)
        rows.append(row)
    return rows
