"""``make demo`` and ``make demo-mono`` on small worlds, with few iterations and an untrained teacher."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import math
import os
import runpy
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
import yaml

import bevkd2.modeling  # noqa: F401  (registers the models)
from bevkd2.checkpoint import load_file, save_file
from bevkd2.cli import console, demo_base
from bevkd2.config import load_config
from bevkd2.d2 import build_model

ROOT = Path(__file__).parents[2]
ITERATIONS, SEED = 3, 3
MODELS = ("teacher", "student", "distilled", "recommended")
NAMES = ("demo", "demo_mono")
# The held-out part of each world, as summary.json counts it.
VAL = {"demo": ("val_scenes", 2), "demo_mono": ("val_frames", 4)}
SIZES = {
    "demo": ("--train-scenes", "2", "--val-scenes", "2"),
    "demo_mono": ("--train-frames", "6", "--val-frames", "4"),
}
NUSCENES_SCORES = ("mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
KITTI_SCORES = tuple(
    f"{metric}_{level}" for metric in ("3D", "BEV") for level in ("easy", "moderate", "hard")
)
PICTURES = {
    "demo": {*MODELS, "bev_response", "found"},
    "demo_mono": {
        *(f"detections_{name}" for name in MODELS),
        "features",
        "perspective",
        "ap_by_distance",
        "found",
    },
}


@dataclass
class Run:
    """Runs a demo; returns its output folder, summary.json and its output."""

    name: str
    output: Path
    summary: dict[str, Any]
    printed: str


@pytest.fixture(scope="module", params=NAMES)
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(request.param, tmp_path_factory.mktemp(request.param))


def run(name: str, folder: Path) -> Run:
    """Runs a demo with an untrained teacher."""
    torch.manual_seed(0)
    teacher = folder / "teacher.safetensors"
    cfg = load_config(ROOT / "configs" / name / "teacher.yaml", ["MODEL.DEVICE", "cpu"])
    save_file(build_model(cfg).state_dict(), teacher)
    paths = {"--output": folder / "output", "--data": folder / "data", "--teacher": teacher}
    words = ["--workers", "1", "--seed", str(SEED), *SIZES[name], "--iterations", str(ITERATIONS)]
    words += [str(word) for option in paths.items() for word in option]
    printed = run_script(name, words, folder)
    output = folder / "output"
    return Run(name, output, json.loads((output / "summary.json").read_text()), printed)


def run_script(name: str, words: list[str], folder: Path) -> str:
    """Runs the demo's script in this process, in a folder; returns what it printed.

    Of the programs that it starts, the first of the multi-view demo is a process of its own, as for users.
    The others run in this process, one after the other: only the start of a process is left out.
    """
    handlers, run_logged = list(logging.getLogger().handlers), demo_base.run_logged
    real = ["student"] if name == "demo" else []

    def start(command: list[str], log: Path, stop: threading.Event, **options: Any) -> int:
        assert command[:3] == [sys.executable, "-m", "bevkd2.cli"] and options["threads"] > 0
        if real:
            assert f"{real.pop()}.yaml" in command[5]
            return run_logged(command, log, stop, **options)
        log.parent.mkdir(parents=True)
        with log.open("w") as file, contextlib.redirect_stdout(file):
            code = console.main(command[3:])
        for handler in [h for h in logging.getLogger().handlers if h not in handlers]:
            logging.getLogger().removeHandler(handler)  # of the training's own log
            handler.close()
        return code

    def in_turn(tasks: Sequence[Callable[[threading.Event], None]], jobs: int) -> None:
        for task in tasks:
            task(threading.Event())

    script, printed = str(ROOT / "tools" / f"{name}.py"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setattr(demo_base, "run_logged", start)
        patch.setattr(demo_base, "run_tasks", in_turn)
        patch.setattr(sys, "argv", [script, *words])
        patch.chdir(folder)
        with pytest.raises(SystemExit, match=r"^0$"):
            runpy.run_path(script, run_name="__main__")
    assert not real
    return printed.getvalue()


@pytest.mark.slow
def test_summary_has_every_number(demo: Run) -> None:
    for model in MODELS:
        numbers = dict(demo.summary[model])
        assert numbers.pop("fps") > 0 and numbers.pop("params_m") > 0
        if demo.name == "demo":
            assert set(numbers) == set(NUSCENES_SCORES)
            assert all(math.isfinite(value) for value in numbers.values())
            assert 0 <= numbers["mAP"] <= 1 and 0 <= numbers["NDS"] <= 1
        else:
            assert set(numbers) == set(KITTI_SCORES)
            assert all(value is None or 0 <= value <= 100 for value in numbers.values())
    key, number = VAL[demo.name]
    assert (demo.summary["seed"], demo.summary[key]) == (SEED, number) and demo.summary["seconds"] > 0


@pytest.mark.slow
def test_scores_are_those_of_the_evaluation(demo: Run) -> None:
    for model in MODELS:
        folder, found = demo.output / model / "inference", demo.summary[model]
        if demo.name == "demo":
            official = json.loads((folder / "metrics_summary.json").read_text())
            assert found["NDS"] == official["nd_score"]
            assert found["mATE"] == official["tp_errors"]["trans_err"]
        else:
            written = json.loads((folder / "kitti_scores.json").read_text())["AP_R40"]
            assert found["3D_moderate"] == written.get("car/3d/moderate")
            assert found["BEV_easy"] == written.get("car/bev/easy")
            assert len(list((folder / "data").glob("*.txt"))) == VAL[demo.name][1]


@pytest.mark.slow
def test_students_are_one_architecture_and_smaller_than_the_teacher(demo: Run) -> None:
    teacher, student, distilled, recommended = (demo.summary[model]["params_m"] for model in MODELS)
    assert student == distilled == recommended < teacher


@pytest.mark.slow
def test_students_had_the_same_iterations_seed_and_data(demo: Run) -> None:
    configs = [yaml.safe_load((demo.output / name / "config.yaml").read_text()) for name in MODELS[1:]]
    for section in ("SOLVER", "SEED", "DATASETS", "INPUT", "DATALOADER"):
        assert configs[0][section] == configs[1][section] == configs[2][section]
    assert configs[0]["SEED"] == SEED
    assert configs[1]["MODEL"]["META_ARCHITECTURE"] == "Distiller"
    logged = []
    for name in MODELS[1:]:
        assert load_file(demo.output / name / "model_final.pth")["iteration"] == ITERATIONS - 1
        rows = (demo.output / name / "metrics.json").read_text().splitlines()
        logged.append([json.loads(row) for row in rows])
    plain, distilled, recommended = ([row["iteration"] for row in rows] for rows in logged)
    assert plain == distilled == recommended and max(plain) >= ITERATIONS - 1
    losses = [{key for row in rows for key in row if key.startswith("loss_distill_")} for rows in logged]
    assert not losses[0] and losses[1] and losses[2]
    if demo.name == "demo_mono":
        assert losses[1] >= {"loss_distill_perspective_feature", "loss_distill_depth_guided"}


@pytest.mark.slow
def test_pictures_show_something(demo: Run) -> None:
    pictures = sorted((demo.output / "pictures").glob("*.png"))
    assert {p.stem for p in pictures} == PICTURES[demo.name]
    for picture in pictures:
        assert str(picture) in demo.printed
        image = cv2.imread(str(picture))
        assert image is not None and min(image.shape[:2]) > 200 and image.std() > 10
    views = {picture.read_bytes() for picture in pictures}
    assert len(views) == len(pictures)


@pytest.mark.slow
def test_table_is_printed(demo: Run) -> None:
    for model, title in demo_base.TITLES.items():
        row = next(line for line in demo.printed.splitlines() if line.startswith(title))
        assert f"{demo.summary[model]['params_m']:.3f}" in row
        if demo.name == "demo":
            assert f"{demo.summary[model]['NDS']:.3f}" in row
    for model in ("distilled", "recommended"):
        gain = demo.summary["gain"][model]
        assert gain["standard_error"] >= 0
        score = "mAP" if demo.name == "demo" else "3D_moderate"
        apart = (demo.summary[model][score] or 0) - (demo.summary["student"][score] or 0)
        assert gain["difference"] == pytest.approx(apart)
        assert f"{demo_base.TITLES[model]} - S (student):" in demo.printed
    key, number = VAL[demo.name]
    assert f"on {number} held-out synthetic {key.removeprefix('val_')}." in demo.printed
    assert str(demo.output / "summary.json") in demo.printed


@pytest.mark.parametrize(("name", "target"), [("demo", "demo-teacher"), ("demo_mono", "demo-mono-teacher")])
def test_missing_teacher_weights_are_an_error_before_any_work(name: str, target: str, tmp_path: Path) -> None:
    paths = ["--output", str(tmp_path / "o"), "--data", str(tmp_path / "d")]
    with pytest.raises(
        FileNotFoundError, match=rf"gone\.safetensors do not exist; `make {target}` trains them"
    ):
        importlib.import_module(f"bevkd2.cli.{name}").main(["--teacher", "gone.safetensors", *paths])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("option", "value", "least"), [("--jobs", 0, 1), ("--val", 1, 2)])
def test_a_number_that_cannot_be_is_an_error_before_any_work(
    name: str, option: str, value: int, least: int, tmp_path: Path
) -> None:
    option = f"--{VAL[name][0]}".replace("_", "-") if option == "--val" else option
    paths = ["--output", str(tmp_path / "o"), "--data", str(tmp_path / "d")]
    with pytest.raises(ValueError, match=f"{option} is {value}, expected at least {least}"):
        importlib.import_module(f"bevkd2.cli.{name}").main([option, str(value), *paths])
    assert not list(tmp_path.iterdir())
