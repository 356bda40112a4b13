"""The benchmarks run on small inputs and print the documented output; the numbers are not tested."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import runpy
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_train_step
from bevkd2.config import load_config
from bevkd2.distill import resolve_teacher
from tests.docs.pages import PAGES, ROOT, commands

STEP = "benchmarks.bench_train_step"
PARTS = bench_train_step.PARTS


def run(script: str, *options: str) -> dict[str, Any]:
    """What a benchmark prints, which is JSON and nothing else; run in this process, as by ``python -m``."""
    printed, threads, level = io.StringIO(), torch.get_num_threads(), logging.root.manager.disable
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("sys.argv", [script, *options])
        try:
            runpy.run_module(f"benchmarks.{script}", run_name="__main__")
        finally:
            torch.set_num_threads(threads)
            logging.disable(level)
    return json.loads(printed.getvalue())


@pytest.fixture(scope="module")
def training_step() -> dict[str, Any]:
    """Runs what docs/benchmarks.md says in this process, made short by options at the end.

    Memory is measured in a process per part: of one part, whose number stands for those of the others.
    """
    (words,) = [command.words for page in PAGES for command in commands(page) if STEP in command.words]
    options = ["--iterations", "1", "--warm-up", "1", "--image-size", "96x32", "MODEL.DEVICE", "cpu"]
    run_part, found = bench_train_step.run_part, []

    def run_one(part: str, args: argparse.Namespace) -> float:
        if not found:
            found.append(run_part("distillation_step_plain", args))
        return found[0]

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(ROOT)  # run_part starts a module of this folder
        patch.setattr(bench_train_step, "run_part", run_one)
        patch.setattr("sys.argv", [*words[words.index(STEP) :], *options])
        bench_train_step.main()
    return json.loads(printed.getvalue())


@pytest.mark.slow
def test_training_step_has_seconds_and_memory(training_step: dict[str, Any]) -> None:
    for part in PARTS:
        assert training_step[part]["seconds"] > 0
        assert training_step[part]["peak_memory_mib"] > 0


@pytest.mark.slow
def test_training_step_says_what_distillation_costs(training_step: dict[str, Any]) -> None:
    ratio = training_step["distillation_step"]["seconds"] / training_step["student_step"]["seconds"]
    assert training_step["distillation_over_student"] == pytest.approx(ratio)
    skipped = 1 - training_step["teacher_needed"]["seconds"] / training_step["teacher_forward"]["seconds"]
    assert training_step["teacher_skipped"] == pytest.approx(skipped)


def test_overhead_is_a_ratio_of_medians_with_quartiles_of_rounds() -> None:
    rounds = {"student_step": [2.0, 4.0, 3.0], "teacher_needed": [1.0, 1.0, 1.0]}
    rounds |= {"distillation_step": [3.0, 6.0, 4.4], "teacher_forward": [1.25, 1.25, 1.25]}
    medians = {part: statistics.median(times) for part, times in rounds.items()}
    found = bench_train_step.overhead(rounds, medians)
    assert found["distillation_over_parts"] == pytest.approx(1.1)
    assert found["distillation_over_parts_quartiles"] == pytest.approx((1.05, 1.15))
    assert found["teacher_skipped"] == pytest.approx(0.2)


@pytest.mark.slow
def test_overhead_alone_on_a_monocular_pair() -> None:
    config = str(ROOT / "configs" / "demo_mono" / "distill.yaml")
    options = ("--overhead", "--config-file", config, "--image-size", "96x32", "--iterations", "1")
    found = run("bench_train_step", *options, "MODEL.DEVICE", "cpu")
    assert found["rounds"] == 1 and found["image_size"] == "96x32" and found["machine"]["threads"] == 1
    assert all(found[part]["seconds"] > 0 for part in PARTS[:-1])
    assert found["distillation_over_parts"] > 0 and not {"share_of_ops", PARTS[-1]} & set(found)


@pytest.mark.parametrize("size", bench_train_step.SIZES)
def test_a_size_names_a_config_that_loads(size: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["bench_train_step", "--size", size])
    args = bench_train_step.parse_arguments()
    if args.config_file is None:
        bench_train_step.make_tiny(args, tmp_path)
    cfg = load_config(args.config_file, args.opts)
    resolve_teacher(cfg)
    assert cfg.DISTILL.METHODS and cfg.SOLVER.IMS_PER_BATCH <= 2


@pytest.mark.slow
def test_training_step_says_what_the_ops_take(training_step: dict[str, Any]) -> None:
    step, plain = (training_step[part]["seconds"] for part in PARTS[-2:])
    share = training_step["share_of_ops"]
    assert 0 < share < 1 and training_step["plain_over_ops"] == pytest.approx(plain / step)
    assert training_step["share_of_plain_forms"] == pytest.approx(1 - (1 - share) * step / plain)


@pytest.mark.slow
def test_training_step_names_the_machine(training_step: dict[str, Any]) -> None:
    machine = training_step["machine"]
    assert machine["torch"] == torch.__version__ and machine["threads"] >= 1
    assert {"processor", "gpu"} <= set(machine)


def test_kitti_evaluation() -> None:
    report = run("bench_kitti_eval", "--frames", "40", "--repeats", "1")
    assert report["frames"] == 40 and report["detections"] == 20 and report["machine"]["threads"] == 1
    assert report["total seconds"] == pytest.approx(report["reading seconds"] + report["scoring seconds"])
    assert report["car/3d/moderate AP_R40"] > 1  # something matched


@pytest.mark.slow
def test_annotations_of_nuscenes_cameras_score_one() -> None:
    report = run("nuscenes_mono_roundtrip", "--scenes", "1")
    assert report["key frames"] == 8 and report["images"] == 48
    assert report["mAP_present"] > 0.98 and report["mATE"] < 1  # of classes that are not there it is 1


@pytest.fixture(scope="module")
def step_with_a_method() -> dict[str, Any]:
    options = ("--methods", "PKD", "BEVResponse", "--rounds", "1", "--no-memory")
    return run("bench_methods", *options)


@pytest.mark.slow
def test_methods_are_measured_on_the_pairs_that_they_support(step_with_a_method: dict[str, Any]) -> None:
    found = {pair: set(step_with_a_method[pair]["methods"]) for pair in ("bevformer", "pgd")}
    assert found == {"bevformer": {"PKD", "BEVResponse"}, "pgd": {"PKD"}}
    for pair in found:
        costs = step_with_a_method[pair]
        assert costs["student_seconds"] > 0 and set(costs["teacher_seconds"]) == {"full", "needed"}
        assert costs["methods"]["PKD"]["step_over_student"] > 0
        assert costs["methods"]["PKD"]["parameters"] == 0 or pair == "pgd"


@pytest.mark.slow
def test_index_of_generated_tables(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.write_text('{"start": {"train": "of an earlier run"}}')
    options = ("--root", str(tmp_path / "world"), "--scenes", "1", "1", "--only", "build", "--out", str(out))
    found = run("bench_nuscenes_index", *options)
    assert found == json.loads(out.read_text()) and found["start"]["train"] == "of an earlier run"
    build = found["build"]["train"]
    assert build["result"] == 40 and build["peak"] >= build["import_peak"] > 0


@pytest.mark.slow
def test_instruction_sets_are_compared_in_turns() -> None:
    found = run("bench_capabilities", "--quick", "--rounds", "2", "--cases", "decoder")
    assert found["rounds"] == 2
    for part in ("forward", "backward"):
        row = found["cases"]["decoder"][part]
        assert row["speedup"] == pytest.approx(row["avx2_ms"] / row["avx512_ms"], rel=0.05)


@pytest.mark.slow
def test_images_per_second_of_a_loader_worker() -> None:
    found = run("bench_loader", "--rounds", "1")
    assert found["images"] == "generated"
    assert all(rate > 0 for rate in found["images_per_cpu_second"].values())
