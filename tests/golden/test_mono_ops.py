"""The recorded deformable convolutions and camera boxes, and that a changed number is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.golden import mono_ops


def test_recorded_ops(shared_dir: Path) -> None:
    rows = mono_ops.compare(shared_dir / "golden" / "mono")
    assert len(rows) == 12
    assert [row.quantity for row in rows if row.failed] == []


@pytest.mark.parametrize(
    ("file", "key", "quantity"),
    [
        ("dcnv2", "k3s2/grad_offset", "DCNv2: grad_offset"),
        ("geometry_nms", "flip_horizontal", "camera boxes: metres and radians"),
        ("geometry_nms", "bev_xyxyr", "camera boxes: metres and radians"),
        ("geometry_nms", "uvd_to_xyz_3x3", "camera boxes: unprojections"),
        ("geometry_nms", "nms_keep_0.3", "camera boxes: rotated NMS, indices that differ"),
    ],
)
def test_a_changed_number_fails(shared_dir: Path, tmp_path: Path, file: str, key: str, quantity: str) -> None:
    shutil.copytree(shared_dir / "golden" / "mono" / "ops", tmp_path / "ops", copy_function=shutil.copyfile)
    path = tmp_path / "ops" / f"{file}.npz"
    arrays = dict(np.load(path))
    arrays[key] = arrays[key][::-1] if key.startswith("nms") else arrays[key] + arrays[key].dtype.type(1e-3)
    path.unlink()
    np.savez(path, **arrays)
    assert [row.quantity for row in mono_ops.compare(tmp_path) if row.failed] == [quantity]
