"""The recorded head of SMOKE, and that a changed number is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.golden import smoke_heads


def test_recorded_heads(shared_dir: Path) -> None:
    rows = smoke_heads.compare(shared_dir / "golden" / "mono")
    assert [row.quantity for row in rows if row.failed] == []
    assert len(rows) == 20


@pytest.mark.parametrize(
    ("key", "quantity"),
    [
        ("target/heatmap", "heat map"),
        ("loss/bbox_dim", "losses"),
        ("pred/loc_corners", "disentangled corners"),
        ("grad/bbox_pred", "gradients of outputs"),
        ("feat_grad", "gradients of features"),
        ("param_grad/conv_regs.0.bias", "gradients of parameters"),
        ("param_grad_sum/conv_cls.weight", "gradients of parameters, sums"),
        ("decode/img0/bboxes_3d", "decoded boxes"),
    ],
)
def test_a_changed_number_fails(shared_dir: Path, tmp_path: Path, key: str, quantity: str) -> None:
    heads = tmp_path / "heads"
    heads.mkdir()
    for path in (shared_dir / "golden" / "mono" / "heads").glob("smoke_small_a_*"):
        shutil.copy(path, heads / path.name.replace("small_a", "of_another_seed"))
    path = heads / "smoke_of_another_seed_outputs.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays[key] = arrays[key] + np.float32(1e-3) * (1 + np.abs(arrays[key]))
    np.savez(path, **arrays)
    assert quantity in [row.quantity for row in smoke_heads.compare(tmp_path) if row.failed]


def test_a_missing_array_or_case_is_refused(shared_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected smoke_<name>_outputs.npz"):
        smoke_heads.compare(tmp_path)
    heads = tmp_path / "heads"
    heads.mkdir()
    for path in (shared_dir / "golden" / "mono" / "heads").glob("smoke_small_a_*"):
        shutil.copy(path, heads / path.name)
    path = heads / "smoke_small_a_outputs.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{key: value for key, value in arrays.items() if key != "param_grad/conv_cls.bias"})
    with pytest.raises(KeyError, match=r"param_grad/conv_cls.bias"):
        smoke_heads.compare(tmp_path)
