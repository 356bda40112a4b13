"""The recorded overlaps, and that a changed number is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.golden import iou


def test_recorded_overlaps(shared_dir: Path) -> None:
    rows = {row.quantity: row for row in iou.compare(shared_dir / "golden" / "mono")}
    assert len(rows) == 9
    assert [row.quantity for row in rows.values() if row.failed] == []
    assert rows["rotated boxes: IoU of touching pairs"].difference <= 3e-15
    assert rows["rotated boxes: IoU of identical pairs"].difference <= 2e-14


def test_a_changed_overlap_fails(shared_dir: Path, tmp_path: Path) -> None:
    with np.load(shared_dir / "golden" / "mono" / "iou" / "rotated_iou_pairs.npz") as file:
        arrays = dict(file)
    arrays["iou_3d"][7] += 1e-8
    (tmp_path / "iou").mkdir()
    np.savez(tmp_path / "iou" / "rotated_iou_pairs.npz", **arrays)
    failed = [row.quantity for row in iou.compare(tmp_path) if row.failed]
    assert failed == ["rotated boxes: iou_3d"]
