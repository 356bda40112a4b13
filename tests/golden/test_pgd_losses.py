"""The recorded targets, losses and gradients of PGD's head, and that a changed number is noticed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden import pgd_losses
from tests.golden.pgd_case import PGDCase

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def gradients_once() -> Iterator[None]:
    """Computes the gradients through a head once: no test here changes what they are computed from."""
    known: dict[bool, Any] = {}
    compute = pgd_losses.head_gradients

    def remembered(case: PGDCase) -> Any:
        if case.is_kitti not in known:
            known[case.is_kitti] = compute(case)
        return known[case.is_kitti]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pgd_losses, "head_gradients", remembered)
        yield


@pytest.fixture
def heads(shared_dir: Path, tmp_path: Path) -> Path:
    """A copy of the KITTI case whose scenarios have other letters."""
    folder = tmp_path / "heads"
    folder.mkdir()
    for path in (shared_dir / "golden" / "mono" / "heads").glob("pgd_kitti_*"):
        shutil.copy(path, folder / path.name)
    for part in ("inputs", "train"):
        arrays = dict(np.load(folder / f"pgd_kitti_{part}.npz"))
        _save(folder, part, {_renamed(key): value for key, value in arrays.items()})
    return folder


def _renamed(key: str) -> str:
    scenario, slash, rest = key.partition("/")
    return {"A": "dense", "B": "some", "C": "none"}.get(scenario, scenario) + slash + rest


def _save(folder: Path, part: str, arrays: Arrays) -> None:
    path = folder / f"pgd_kitti_{part}.npz"
    path.unlink(missing_ok=True)
    np.savez(path, **arrays)


def test_recorded_numbers_are_met(shared_dir: Path) -> None:
    rows = pgd_losses.compare(shared_dir / "golden" / "mono")
    assert len(rows) > 30
    assert [row.quantity for row in rows if row.failed] == []


def test_changed_numbers_fail(heads: Path) -> None:
    arrays = dict(np.load(heads / "pgd_kitti_train.npz"))
    arrays["some/target/bbox_pos/1"][2, 3] *= np.float32(1.001)
    arrays["none/cw/loss_cls"] = arrays["none/cw/loss_cls"] * np.float32(1.0001)
    arrays["dense/pos/points"][3, 0] += 1
    arrays["dense/pos/proj_bbox2d_pred"][0, 0] *= np.float32(1.01)
    arrays["dense/param_grad/conv_cls.bias"][0] *= np.float32(1.01)
    arrays["dense/param_grad_sum/conv_regs.2.weight"] = (
        arrays["dense/param_grad_sum/conv_regs.2.weight"] + 1.0
    )
    arrays["dense/param_grad/conv_cls_prev.0.gn.bias"] *= np.float32(1.0002)
    arrays["dense/param_grad_sum/conv_cls_prev.0.gn.bias"] += np.float32(0.1)
    arrays["dense/param_grad/cls_convs.1.conv.conv_offset.bias"] *= np.float32(1.004)
    arrays["dense/param_grad/cls_convs.0.gn.bias"] *= np.float32(1.002)
    arrays["dense/feat_grad/3"][1, 2] += np.float32(1e-3)
    _save(heads, "train", arrays)
    failed = [row.quantity for row in pgd_losses.compare(heads.parent) if row.failed]
    assert failed == [
        "pgd_kitti: positives, locations",
        "pgd_kitti: regression targets",
        "pgd_kitti: projected 3D boxes, pixels",
        "pgd_kitti: losses",
        "pgd_kitti: gradients of branches",
        "pgd_kitti: gradients of branches, sums",
        "pgd_kitti: gradients of the class branch, distance",
        "pgd_kitti: gradients of the class branch, sums",
        "pgd_kitti: gradients of offsets, distance",
        "pgd_kitti: gradients of towers, distance",
        "pgd_kitti: gradients of features",
    ]


@pytest.mark.parametrize("beginning", ["some/cw/", "dense/cw/total", "none/target/labels/2"])
def test_missing_arrays_are_refused(heads: Path, beginning: str) -> None:
    arrays = dict(np.load(heads / "pgd_kitti_train.npz"))
    _save(heads, "train", {k: v for k, v in arrays.items() if not k.startswith(beginning)})
    with pytest.raises(KeyError):
        pgd_losses.compare(heads.parent)
