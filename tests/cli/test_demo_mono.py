"""``make demo-mono`` on a world of a few frames, with few iterations and an untrained teacher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
import yaml

import bevkd2.modeling  # noqa: F401  (registers the models)
from bevkd2.checkpoint import load_file, save_file
from bevkd2.cli import demo_mono as demo_mono_tool
from bevkd2.config import load_config
from bevkd2.d2 import build_model

ROOT = Path(__file__).parents[2]
ITERATIONS, SEED, VAL_FRAMES = 3, 3, 4
MODELS = ("teacher", "student", "distilled")
SCORES = [f"{metric}_{level}" for metric in ("3D", "BEV") for level in ("easy", "moderate", "hard")]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an untrained teacher."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    cfg = load_config(ROOT / "configs" / "demo_mono" / "teacher.yaml", ["MODEL.DEVICE", "cpu"])
    save_file(build_model(cfg).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def demo(stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder, and what was printed."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, str(ROOT / "tools" / "demo_mono.py"), "--workers", "1", "--seed", str(SEED)]
    command += [
        "--output",
        str(folder / "output"),
        "--data",
        str(folder / "data"),
        "--teacher",
        str(stand_in),
    ]
    command += ["--train-frames", "6", "--val-frames", str(VAL_FRAMES), "--iterations", str(ITERATIONS)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return folder / "output", done.stdout


@pytest.fixture(scope="module")
def summary(demo: tuple[Path, str]) -> dict[str, Any]:
    return json.loads((demo[0] / "summary.json").read_text())


def test_summary_has_every_number(summary: dict[str, Any]) -> None:
    for model in MODELS:
        for score in SCORES:
            value = summary[model][score]
            assert value is None or 0 <= value <= 100
        assert summary[model]["fps"] > 0
    assert summary["student"]["params_m"] == summary["distilled"]["params_m"] < summary["teacher"]["params_m"]
    assert (summary["seed"], summary["val_frames"]) == (SEED, VAL_FRAMES) and summary["seconds"] > 0


def test_scores_are_those_of_the_evaluation(demo: tuple[Path, str], summary: dict[str, Any]) -> None:
    for model in MODELS:
        written = json.loads((demo[0] / model / "inference" / "kitti_scores.json").read_text())["AP_R40"]
        assert summary[model]["3D_moderate"] == written.get("car/3d/moderate")
        assert summary[model]["BEV_easy"] == written.get("car/bev/easy")
        files = sorted((demo[0] / model / "inference" / "data").glob("*.txt"))
        assert len(files) == VAL_FRAMES


def test_students_had_the_same_iterations_seed_and_data(demo: tuple[Path, str]) -> None:
    configs = [yaml.safe_load((demo[0] / name / "config.yaml").read_text()) for name in MODELS[1:]]
    for section in ("SOLVER", "SEED", "DATASETS", "INPUT", "DATALOADER"):
        assert configs[0][section] == configs[1][section]
    assert configs[0]["SEED"] == SEED
    for name in MODELS[1:]:
        assert load_file(demo[0] / name / "model_final.pth")["iteration"] == ITERATIONS - 1
    logged = (demo[0] / "distilled" / "metrics.json").read_text()
    assert "loss_distill_perspective_feature" in logged and "loss_distill_depth_guided" in logged


def test_pictures_show_something(demo: tuple[Path, str]) -> None:
    names = {"detections_teacher", "detections_student", "detections_distilled", "features", "perspective"}
    pictures = sorted((demo[0] / "pictures").glob("*.png"))
    assert {p.stem for p in pictures} == names | {"ap_by_distance"}
    for picture in pictures:
        assert str(picture) in demo[1]
        image = cv2.imread(str(picture))
        assert image is not None and min(image.shape[:2]) > 200 and image.std() > 10


def test_table_is_printed(demo: tuple[Path, str], summary: dict[str, Any]) -> None:
    for title, model in (("T (teacher)", "teacher"), ("S (student)", "student"), ("S+KD", "distilled")):
        row = next(line for line in demo[1].splitlines() if line.startswith(title))
        assert f"{summary[model]['params_m']:.3f}" in row
    assert str(demo[0] / "summary.json") in demo[1]


def test_a_teacher_that_is_not_there_is_named_before_anything_is_done(
    tmp_path: Path,
) -> None:
    paths = ["--output", str(tmp_path / "o"), "--data", str(tmp_path / "d")]
    with pytest.raises(SystemExit, match=r"gone\.safetensors do not exist; `make demo-mono-teacher` trains"):
        demo_mono_tool.main(["--teacher", "gone.safetensors", *paths])
    assert not list(tmp_path.iterdir())
