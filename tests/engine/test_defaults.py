"""Command line and set-up."""

from __future__ import annotations

import argparse
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from bevkd2.config import read_config
from bevkd2.d2 import PROVIDER
from bevkd2.engine import default_argument_parser, setup, write_config
from bevkd2.engine.defaults import resolve_device
from bevkd2.engine.run_log import log_to, read_environment
from tests.engine.toys import TOY_OPTIONS

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


def arguments(output: Path, *options: Any, flags: tuple[str, ...] = ()) -> argparse.Namespace:
    words = [*flags, "OUTPUT_DIR", str(output), *map(str, TOY_OPTIONS), *map(str, options)]
    return default_argument_parser().parse_args(words)


def test_flags_are_detectron2s() -> None:
    line = (
        "--config-file c.yaml --resume --eval-only --num-gpus 8 --num-machines 2 --machine-rank 1 "
        "--dist-url tcp://h:1 --import a --import b.c SOLVER.BASE_LR 0.1 MODEL.WEIGHTS x.pth"
    )
    args = default_argument_parser().parse_args(line.split())
    assert vars(args) == {
        "config_file": "c.yaml",
        "resume": True,
        "eval_only": True,
        "num_gpus": 8,
        "num_machines": 2,
        "machine_rank": 1,
        "dist_url": "tcp://h:1",
        "plugins": ["a", "b.c"],
        "traceback": False,
        "opts": ["SOLVER.BASE_LR", "0.1", "MODEL.WEIGHTS", "x.pth"],
    }
    defaults = default_argument_parser().parse_args([])
    assert defaults.num_gpus == defaults.num_machines == 1 and defaults.dist_url.startswith(
        "tcp://127.0.0.1:"
    )
    assert not (defaults.resume or defaults.eval_only or defaults.opts or defaults.config_file)


def test_the_environment_is_read_from_the_log(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("[1] x INFO: environment:\n---  --\nold  1\n---  --\n")
    assert read_environment(tmp_path / "log.txt") == {"old": "1"}
    setup(arguments(tmp_path))
    found = read_environment(tmp_path / "log.txt")
    assert found["bevkd2.d2 provider"] == PROVIDER and found["numpy"] == np.__version__
    assert found["PyTorch"].startswith(f"{torch.__version__}, ") and "old" not in found
    (tmp_path / "cut.txt").write_bytes(b"\xff\n[1] x INFO: environment:")
    assert read_environment(tmp_path / "cut.txt") == {}


def test_setup_writes_a_config_that_reproduces_itself(tmp_path: Path) -> None:
    cfg = setup(arguments(tmp_path, "SOLVER.STEPS", "(3, 4)"))
    assert not (tmp_path / "config.yaml").exists()
    write_config(cfg)
    assert cfg.is_frozen() and cfg.SOLVER.STEPS == (3, 4)
    assert read_config(tmp_path / "config.yaml") == cfg


def test_log_begins_with_the_provider_and_holds_the_config(tmp_path: Path) -> None:
    write_config(setup(arguments(tmp_path)))
    log = (tmp_path / "log.txt").read_text()
    report = log.index("environment:")
    assert (
        report < log.index(f"bevkd2.d2 provider  {PROVIDER}") < log.index("Python  ") < log.index("BASE_LR")
    )
    assert "command line: Namespace(" in log


def test_log_goes_to_the_last_run_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        setup(arguments(tmp_path / name))
    capsys.readouterr()
    logging.getLogger("bevkd2.x").info("hello")
    logging.getLogger("detectron2.x").info("hello too")
    logging.getLogger("elsewhere").info("not of interest")
    logging.getLogger("elsewhere").warning("of interest")
    for text in ((tmp_path / "b" / "log.txt").read_text(), capsys.readouterr().out):
        assert text.count("hello") == 2 and text.count("hello too") == 1
        assert "of interest" in text and "WARNING" in text and "not of interest" not in text
    assert "hello" not in (tmp_path / "a" / "log.txt").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_log_on_a_full_disk_says_so_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log_to(tmp_path)
    for _ in range(3):
        logging.getLogger("bevkd2.x").info("hello")
    out, err = capfd.readouterr()
    (tmp_path / "other").mkdir()
    log_to(tmp_path / "other")
    assert out.count("hello") == 3
    assert err.count("\n") == 1 and "log.txt cannot be written: [Errno 28] No space left" in err


def test_an_empty_output_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="OUTPUT_DIR is '', expected a folder: without one no checkpoint"):
        setup(arguments(Path("x"), "OUTPUT_DIR", ""))
    assert list(tmp_path.iterdir()) == []


def test_seed_is_set_everywhere(tmp_path: Path) -> None:
    draws = []
    for seed in (5, 5, 6):
        setup(arguments(tmp_path, "SEED", seed))
        draws.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[0], draws[2], strict=True))


def test_fresh_seed_is_drawn_written_and_kept_over_a_resume(tmp_path: Path) -> None:
    cfg = setup(arguments(tmp_path, "SEED", -1))
    write_config(cfg)
    first = cfg.SEED
    assert first >= 0 and yaml.safe_load((tmp_path / "config.yaml").read_text())["SEED"] == first
    assert f"SEED {first}: drawn for this run" in (tmp_path / "log.txt").read_text()
    resumed, chosen, anew = (
        setup(arguments(tmp_path, "SEED", seed, flags=flags)).SEED
        for seed, flags in ((-1, ("--resume",)), (4, ("--resume",)), (-1, ()))
    )
    assert resumed == first and chosen == 4 and anew not in (first, 4)


@needs_no_gpu
def test_auto_device_is_resolved_and_logged(tmp_path: Path) -> None:
    cfg = setup(arguments(tmp_path, "MODEL.DEVICE", "auto"))
    assert cfg.MODEL.DEVICE == "cpu"
    assert "MODEL.DEVICE auto: cpu, since this PyTorch was built" in (tmp_path / "log.txt").read_text()


@needs_no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_gpu_asked_for_where_there_is_none(tmp_path: Path, device: str) -> None:
    with pytest.raises(
        ValueError, match=rf"MODEL\.DEVICE is '{device}', but this PyTorch .*MODEL\.DEVICE cpu"
    ):
        setup(arguments(tmp_path, "MODEL.DEVICE", device))


def test_gpu_number_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == "cuda" and resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(ValueError, match="'cuda:2', but PyTorch sees 2 GPUs"):
        resolve_device("cuda:2")
    monkeypatch.setattr("bevkd2.d2.comm.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"each process has a GPU of its own; set MODEL\.DEVICE cuda"):
        resolve_device("cuda:1")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:", "cuda:-1", "mps", "cpu:x"])
def test_unknown_device_names_the_key_and_the_known_ones(device: str) -> None:
    with pytest.raises(ValueError, match=rf"MODEL\.DEVICE is '{device}', expected auto, cpu, cuda or cuda:N"):
        resolve_device(device)


def test_evaluation_keeps_the_trainings_config(tmp_path: Path) -> None:
    trained = setup(arguments(tmp_path, "SOLVER.BASE_LR", 0.5))
    write_config(trained)
    evaluated = setup(arguments(tmp_path, "SOLVER.BASE_LR", 0.25, flags=("--eval-only",)))
    write_config(evaluated, "inference")
    assert read_config(tmp_path / "config.yaml") == trained
    assert read_config(tmp_path / "inference" / "config.yaml").SOLVER.BASE_LR == 0.25


def distiller(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "teacher.yaml").write_text(
        "MODEL: {META_ARCHITECTURE: ToyDetector, BEVFORMER: {NUM_QUERIES: 7}}\n"
    )
    student = tmp_path / "student.yaml"
    student.write_text("MODEL: {META_ARCHITECTURE: Distiller}\nDISTILL: {TEACHER: {CONFIG: teacher.yaml}}\n")
    return ("--config-file", str(student))


def without_architecture(output: Path, flags: tuple[str, ...]) -> argparse.Namespace:
    return default_argument_parser().parse_args([*flags, "OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu"])


def test_teacher_is_embedded_in_the_dumped_config(tmp_path: Path) -> None:
    cfg = setup(without_architecture(tmp_path / "out", distiller(tmp_path)))
    assert cfg.DISTILL.TEACHER.RESOLVED.MODEL.BEVFORMER.NUM_QUERIES == 7 and cfg.DISTILL.TEACHER.CONFIG == ""
    write_config(cfg)
    (tmp_path / "teacher.yaml").unlink()
    again = setup(
        without_architecture(tmp_path / "again", ("--config-file", str(tmp_path / "out" / "config.yaml")))
    )
    assert again.DISTILL == cfg.DISTILL


def test_student_of_a_distillation_is_evaluated_without_its_teacher(tmp_path: Path) -> None:
    flags = distiller(tmp_path)
    (tmp_path / "teacher.yaml").unlink()
    cfg = setup(without_architecture(tmp_path / "out", (*flags, "--eval-only")))
    assert cfg.MODEL.META_ARCHITECTURE == "BEVFormer"


def test_plugin_is_imported_before_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "engine_test_plugin.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="imported"):
        setup(arguments(tmp_path, "NO.SUCH.KEY", 1, flags=("--import", "engine_test_plugin")))
    with pytest.raises(ImportError, match="--import no_such_package"):
        setup(arguments(tmp_path, flags=("--import", "no_such_package")))
