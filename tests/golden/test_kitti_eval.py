"""The official results, and that a changed number is noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.golden import kitti_eval

Change = Callable[[dict[str, Any]], object]


def test_official_results(shared_dir: Path) -> None:
    rows = kitti_eval.compare(shared_dir / "golden" / "mono")
    assert len(rows) == 13
    assert [row.quantity for row in rows if row.failed] == []


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (lambda d: d["AP_R40"].update({"car/3d/hard": d["AP_R40"]["car/3d/hard"] + 1e-8}), "AP_R40"),
        (lambda d: d["AP_R11"].pop("car/3d/hard"), "AP_R11"),
        (lambda d: d["detail"]["car/bev/easy"]["fp"].__setitem__(0, 7), "fp"),
        (lambda d: d["detail"]["car/bev/easy"]["thresholds"].pop(), "thresholds"),
        (lambda d: d["detail"]["car/bbox/easy"]["aos"].__setitem__(0, 0.5), "aos"),
        (lambda d: d["not_evaluated"].clear(), "sets evaluated"),
    ],
)
def test_a_changed_number_fails(shared_dir: Path, tmp_path: Path, change: Change, failed: str):
    copy = tmp_path / "kitti_eval" / "edge"
    shutil.copytree(shared_dir / "golden" / "mono" / "kitti_eval" / "edge", copy)
    golden = json.loads((copy / "results.json").read_text())
    change(golden)
    copy.chmod(0o755)
    (copy / "results.json").unlink()
    (copy / "results.json").write_text(json.dumps(golden))
    assert failed in [row.quantity for row in kitti_eval.compare(tmp_path) if row.failed]


def test_a_folder_without_sets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder with a results.json"):
        kitti_eval.compare(tmp_path)
