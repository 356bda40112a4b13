"""The command line on label files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bevkd2.cli.console import run_cli
from tests.limits import PROGRAM_SECONDS

TOOLS = Path(__file__).parents[2] / "tools"
LABEL = "Car 0.00 0 1.64 500.00 170.00 620.00 250.00 1.53 1.63 3.88 -1.00 1.70 14.00 1.57\n"
DETECTION = LABEL.replace("0.00 0", "-1 -1").replace("\n", " 0.90\n")


@pytest.fixture
def tool() -> ModuleType:
    from bevkd2.cli import kitti_eval

    return kitti_eval


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two frames with a car each; the detection in the second is two metres off."""
    (tmp_path / "label_2").mkdir()
    (tmp_path / "data").mkdir()
    for frame in ("000000", "000001"):
        (tmp_path / "label_2" / f"{frame}.txt").write_text(LABEL)
    (tmp_path / "data" / "000000.txt").write_text(DETECTION)
    (tmp_path / "data" / "000001.txt").write_text(DETECTION.replace("14.00", "16.00"))
    return tmp_path


def test_scores_are_printed_and_written(tool: ModuleType, folder: Path, capsys):
    out = folder / "new" / "scores.json"
    assert tool.main(["--gt", str(folder), "--det", str(folder), "--json", str(out)]) == 0
    printed = capsys.readouterr()
    assert "2 images" in printed.out and "easy R40" in printed.out and printed.err == ""
    report = json.loads(out.read_text())
    assert set(report) >= {"AP_R40", "AP_R11", "AOS_R40", "not_evaluated"}
    # Two of two in the image: thresholds 0 and 1 have precision 1; in 3D one of the two.
    assert report["AP_R40"]["car/bbox/easy"] == pytest.approx(100 / 40)
    assert report["AP_R11"]["car/bbox/easy"] == pytest.approx(100 / 11)
    assert report["AP_R11"]["car/3d/easy"] == pytest.approx(50 / 11)
    assert set(report["AOS_R40"]) == {"car/bbox/easy", "car/bbox/moderate", "car/bbox/hard"}
    assert len(report["not_evaluated"]) == 18


def test_frames_without_a_detection_file_are_not_counted_but_named(tool, folder: Path, capsys):
    (folder / "data" / "000001.txt").unlink()
    out = folder / "scores.json"
    assert tool.main(["--gt", str(folder), "--det", str(folder), "--json", str(out)]) == 0
    assert json.loads(out.read_text())["AP_R11"]["car/3d/easy"] == pytest.approx(100 / 11)
    assert "warning: 1 frames of" in capsys.readouterr().err
    split = folder / "val.txt"
    split.write_text("000000\n000001\n")
    arguments = ["--gt", str(folder), "--det", str(folder), "--split", str(split)]
    assert run_cli(tool.main, arguments) == 1
    assert "no detection file of 1 frame (000001)" in capsys.readouterr().err
    (folder / "data" / "000001.txt").write_text("")
    assert tool.main(arguments) == 0
    assert "2 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (DETECTION.replace("0.90", "nan"), "000001.txt, line 1: score is 'nan'; expected a finite number"),
        (LABEL, "000001.txt, line 1: 15 columns; a detection row has 16"),
        (DETECTION.replace("Car", "Bus"), "000001.txt, line 1: unknown type 'Bus'"),
    ],
)
def test_bad_files_give_one_message(tool, folder: Path, capsys, row: str, message: str):
    (folder / "data" / "000001.txt").write_text(row)
    assert run_cli(tool.main, ["--gt", str(folder), "--det", str(folder)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and printed.err.startswith("error: ")
    assert "(--traceback prints it)" in printed.err


def test_it_says_which_objects_count_and_warns_where_none_does(tool, folder: Path, capsys):
    assert tool.main(["--gt", str(folder), "--det", str(folder)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["car", "moderate", "2", "2", "0", "0", "0", "2", "0"] in lines
    for frame in ("000000", "000001"):
        path = folder / "label_2" / f"{frame}.txt"
        path.write_text(LABEL.replace("500.00 170.00 620.00 250.00", "-1 -1 -1 -1"))
    assert tool.main(["--gt", str(folder), "--det", str(folder)]) == 0
    warning = (
        "warning: car: no object counts at easy, moderate, hard, so AP is 0 there: of 2 labelled, 2 have"
    )
    assert warning in capsys.readouterr().err


def test_a_frame_without_ground_truth_is_an_error(tool, folder: Path, capsys):
    shutil.copy(folder / "data" / "000000.txt", folder / "data" / "000007.txt")
    assert run_cli(tool.main, ["--gt", str(folder), "--det", str(folder)]) == 1
    assert "detections of 1 frame (000007) without a label file" in capsys.readouterr().err


def run(*command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(TOOLS.parent)}
    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_as_a_script(folder: Path):
    printed = run(str(TOOLS / "kitti_eval.py"), "--gt", str(folder), "--det", str(folder / "data"))
    assert "2 images" in printed


def test_kitti_eval_does_not_import_torch():
    # Loading torch would take longer than to score KITTI's validation set.
    modules = "bevkd2.kitti.files, bevkd2.kitti.ap, bevkd2.kitti.files"
    assert run("-c", f"import sys, {modules}; print('torch' in sys.modules)") == "False\n"


@pytest.mark.parametrize("name", ["ds1_40frames", "edge"])
def test_official_results(tool, shared_dir: Path, tmp_path: Path, name: str):
    recorded = shared_dir / "golden" / "mono" / "kitti_eval" / name
    out = tmp_path / "scores.json"
    arguments = ["--gt", str(recorded / "label_2"), "--det", str(recorded / "dets"), "--json", str(out)]
    assert tool.main(arguments) == 0
    ours, golden = json.loads(out.read_text()), json.loads((recorded / "results.json").read_text())
    for quantity in ("AP_R40", "AP_R11", "AOS_R40"):
        assert ours[quantity] == pytest.approx(golden[quantity], rel=0, abs=1e-9)
    assert ours["not_evaluated"] == golden["not_evaluated"]
