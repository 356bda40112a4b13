"""The recorded distillation losses, through the methods, and that a changed number is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.golden import kd_defeat, kd_fgd, kd_repdistiller


@pytest.mark.parametrize(
    ("module", "rows"), [(kd_fgd, 8), (kd_defeat, 7), (kd_repdistiller, 12)], ids=lambda value: str(value)
)
def test_recorded_losses(shared_dir: Path, module: ModuleType, rows: int) -> None:
    found = module.compare(shared_dir / "golden" / "mono")
    assert len(found) == rows
    assert [row.quantity for row in found if row.failed] == []


@pytest.mark.parametrize(
    ("module", "file", "key", "quantity"),
    [
        (kd_fgd, "fgd_losses", "align32to64_s16/grad_feat_s", "FGD: gradient"),
        (kd_fgd, "fgd_losses", "same64_s8/mask_fg", "FGD: masks"),
        (kd_defeat, "defeat_losses", "bb_decouple_adapt/loss", "DeFeat: backbone"),
        (kd_repdistiller, "repdistiller_losses", "sp/diff/loss_f64", "SP"),
        (kd_repdistiller, "repdistiller_losses", "vid/same/grad_log_scale", "VID, gradients"),
    ],
)
def test_a_changed_number_fails(
    shared_dir: Path, tmp_path: Path, module: ModuleType, file: str, key: str, quantity: str
) -> None:
    source = shared_dir / "golden" / "mono" / "kd"
    shutil.copytree(source, tmp_path / "kd", copy_function=shutil.copyfile)
    path = tmp_path / "kd" / f"{file}.npz"
    arrays = dict(np.load(path))
    arrays[key] = arrays[key] * 1.01
    path.unlink()
    np.savez(path, **arrays)
    assert [row.quantity for row in module.compare(tmp_path) if row.failed] == [quantity]


def test_a_recording_without_cases_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kd").mkdir()
    np.savez(tmp_path / "kd" / "fgd_losses.npz", other=np.zeros(1))
    with pytest.raises(LookupError, match="feat_s"):
        kd_fgd.compare(tmp_path)
