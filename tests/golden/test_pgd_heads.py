"""The recorded maps and detections of PGD's head, and that a changed number is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.golden import pgd_heads


def test_recorded_heads(shared_dir: Path) -> None:
    rows = pgd_heads.compare(shared_dir / "golden" / "mono")
    assert [row.quantity for row in rows if row.failed] == []
    assert len(rows) == 15 + 17


def test_changed_numbers_fail(shared_dir: Path, tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    heads.mkdir()
    for path in (shared_dir / "golden" / "mono" / "heads").glob("pgd_kitti_*"):
        shutil.copy(path, heads / path.name)
    with np.load(heads / "pgd_kitti_eval.npz") as file:
        arrays = dict(file)
    arrays["img0/scores_3d"][3] *= 1.01
    arrays["img1/pre_nms_bboxes"][7, 6] += 0.1
    arrays["img0/bboxes_2d"][0, 1] += 0.5
    arrays["bbox_eval/2"][1, 3, 4, 5] += 1e-2
    arrays["bbox_eval/2"][1, 9, 4, 5] += 1.0
    arrays["img1/corners"][0] += 1e-2
    arrays["img0/pre_nms_dir"] = 1 - arrays["img0/pre_nms_dir"]
    np.savez(heads / "pgd_kitti_eval.npz", **arrays)
    failed = [row.quantity for row in pgd_heads.compare(tmp_path) if row.failed]
    assert failed == [
        "pgd_kitti: maps in evaluation",
        "pgd_kitti: metres in evaluation",
        "pgd_kitti: candidates, boxes",
        "pgd_kitti: candidates, half turns that differ",
        "pgd_kitti: detections, corners",
        "pgd_kitti: detections, scores",
        "pgd_kitti: detections, 2D boxes",
    ]


def test_a_folder_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected pgd_<name>_outputs_train.npz"):
        pgd_heads.compare(tmp_path)
