"""The recorded runs of the published code, and that the tool notices when something is off."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.golden import verify as verify_golden


@pytest.fixture
def golden_dir(shared_dir: Path) -> Path:
    return shared_dir / "golden" / "bevformer"


def test_recorded_cases_pass(golden_dir: Path, capsys: pytest.CaptureFixture):
    status = verify_golden.main([str(golden_dir)])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "FAIL" not in printed
    assert "all within tolerance" in printed


@pytest.mark.parametrize(
    ("part", "key", "quantity"),
    [
        ("out", "out/f1/bev_embed", "BEV embedding"),
        ("out", "loss/loss_cls", "losses"),
        ("weights", "pts_bbox_head.cls_branches.0.6.bias", "class scores"),
    ],
)
def test_a_changed_number_fails(
    golden_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    part: str,
    key: str,
    quantity: str,
):
    for path in golden_dir.glob("tiny_s0_*"):
        shutil.copy(path, tmp_path / path.name.replace("tiny_s0", "other_s7"))
    path = tmp_path / f"other_s7_{part}.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays[key] = arrays[key] + np.float32(0.01)
    np.savez(path, **arrays)
    assert verify_golden.main([str(tmp_path)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert any(line.startswith(quantity) for line in failed)


def test_a_case_without_attention_weights_fails(
    golden_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    for path in golden_dir.glob("tiny_s0_*"):
        shutil.copy(path, tmp_path)
    path = tmp_path / "tiny_s0_attn.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{key: value for key, value in arrays.items() if "/tsa_attn/" not in key})
    assert verify_golden.main([str(tmp_path)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert len(failed) == 1
    assert failed[0].startswith("temporal attention weights")


def test_folder_without_case_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert verify_golden.main([str(tmp_path)]) == 1
    assert "has no case" in capsys.readouterr().err


def test_case_with_a_missing_part_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "tiny_s3_meta.json").write_text("{}")
    assert verify_golden.main([str(tmp_path)]) == 1
    assert "tiny_s3_weights.npz is missing" in capsys.readouterr().err


def test_empty_folders_of_the_monocular_layout_fail(tmp_path: Path, capsys: pytest.CaptureFixture):
    for name in verify_golden.FOLDERS:
        (tmp_path / name).mkdir()
    assert verify_golden.main([str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert all(f"error: {title}:" in printed.err for title in verify_golden.MONOCULAR)
    assert "ok" not in printed.out


def test_a_damaged_file_fails_its_check_alone(
    shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    for name in verify_golden.FOLDERS:
        (tmp_path / name).mkdir()
    path = tmp_path / "iou" / "rotated_iou_pairs.npz"
    path.write_bytes((shared_dir / "golden" / "mono" / "iou" / path.name).read_bytes()[:5000])
    assert verify_golden.main([str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "error: rotated boxes (iou): " in printed.err
    assert "error: KITTI evaluation (kitti_eval): " in printed.err
