"""The recorded maps and detections of PGD's head, and that a changed number is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

TOOLS = Path(__file__).parents[3] / "tools"


@pytest.fixture
def pgd_heads(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    from golden import pgd_heads

    return pgd_heads


def test_recorded_heads(pgd_heads: ModuleType, shared_dir: Path) -> None:
    rows = pgd_heads.compare(shared_dir / "golden" / "mono")
    assert [row.quantity for row in rows if row.failed] == []
    assert len(rows) == 13 + 15


def test_changed_numbers_fail(pgd_heads: ModuleType, shared_dir: Path, tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    heads.mkdir()
    for path in (shared_dir / "golden" / "mono" / "heads").glob("pgd_kitti_*"):
        shutil.copy(path, heads / path.name)
    arrays = dict(np.load(heads / "pgd_kitti_eval.npz"))
    arrays["img0/scores_3d"][3] *= 1.01
    arrays["img1/pre_nms_bboxes"][7, 6] += 0.1
    np.savez(heads / "pgd_kitti_eval.npz", **arrays)
    failed = [row.quantity for row in pgd_heads.compare(tmp_path) if row.failed]
    assert failed == ["pgd_kitti: candidates, boxes", "pgd_kitti: detections, scores"]
