"""A user's error is one message and the exit status 1; programming errors keep their traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bevkd2.cli.console import run_cli
from bevkd2.data.synthetic import WorldConfig, generate
from tests.limits import PROGRAM_SECONDS

ROOT = Path(__file__).parents[2]
TRAIN_NET = str(ROOT / "tools" / "train_net.py")
STUDENT = ("--config-file", str(ROOT / "configs/demo/student.yaml"))
DISTILL = ("--config-file", str(ROOT / "configs/demo/distill.yaml"))
CPU = ("MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "1", "DATALOADER.NUM_WORKERS", "0")
TRACEBACK = "Traceback (most recent call last)"
BROKEN_METHOD = """
from bevkd2.distill import DistillMethod, register_method


@register_method
class Broken(DistillMethod):
    node = "BROKEN"

    def forward(self, student, teacher, targets):
        raise ValueError("a mistake in the method")
"""

# Command line (flags, options), and the expected message.
EARLY = {
    "unknown key": ((*STUDENT, "SOLVER.BASE_LRR", "1"), "unknown config key 'SOLVER.BASE_LRR'"),
    "no such config": (("--config-file", "nowhere.yaml"), "config file nowhere.yaml does not exist"),
    "no such plugin": ((*STUDENT, "--import", "no_such_package"), "--import no_such_package"),
}
LATER = {
    "no data": ((*STUDENT, *CPU, "DATASETS.ROOT", "/nowhere/at/all"), "/nowhere/at/all"),
    "no weights": ((*STUDENT, *CPU, "MODEL.WEIGHTS", "nowhere.pth"), "nowhere.pth"),
    "no teacher": ((*DISTILL, *CPU, "DISTILL.TEACHER.WEIGHTS", "nowhere.pth"), "nowhere.pth does not exist"),
    "no such method": ((*DISTILL, *CPU, "DISTILL.METHODS", "['Telepathy']"), "Telepathy"),
    "wrong value": ((*STUDENT, *CPU, "SOLVER.OPTIMIZER", "LION"), "SOLVER.OPTIMIZER: 'LION' is unknown"),
}
if not torch.cuda.is_available():
    LATER["no GPU"] = ((*STUDENT, "MODEL.DEVICE", "cuda"), "add MODEL.DEVICE cpu to run on the CPU")
WRONG_DEVICE = (*STUDENT, "MODEL.DEVICE", "gpu")
OTHERS = {
    "flag": ((*STUDENT, "--traceback", "MODEL.DEVICE", "gpu"), {}),
    "variable": (WRONG_DEVICE, {"BEVKD2_TRACEBACK": "1"}),
}
Done = dict[str, dict[str, object]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("errors")
    config = WorldConfig(num_train_scenes=1, num_val_scenes=1, frames_per_scene=2, image_size=(88, 32))
    generate(config, folder / "world", progress=False)
    (folder / "broken_plugin.py").write_text(BROKEN_METHOD)
    (folder / "assets").symlink_to(ROOT / "assets")
    return folder


def start(folder: Path, words: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def done(folder: Path) -> Done:
    """What every command line left."""
    cases = {name: (words, {}) for name, (words, _) in {**EARLY, **LATER}.items()} | OTHERS
    lines = []
    for name, (words, environment) in cases.items():
        root = () if "DATASETS.ROOT" in words else ("DATASETS.ROOT", str(folder / "world"))
        lines.append([[*words, *root, "OUTPUT_DIR", str(folder / name)], environment])
    process = start(folder, [str(Path(__file__).with_name("run_cases.py")), TRAIN_NET], json.dumps(lines))
    assert process.returncode == 0, process.stderr[-3000:]
    return dict(zip(cases, json.loads(process.stdout), strict=True))


def check(message: str, stdout: str, stderr: str, output: Path) -> None:
    assert stderr.count("error: ") == 1 and message in stderr
    assert "Traceback" not in stderr + stdout and "--traceback prints it" in stderr
    assert "running with the config" not in stdout and not (output / "config.yaml").exists()


@pytest.mark.parametrize("name", [*EARLY, *LATER])
def test_a_users_error_is_one_message(done: Done, folder: Path, name: str) -> None:
    found, message = done[name], {**EARLY, **LATER}[name][1]
    assert found["returncode"] == 1
    check(message, str(found["stdout"]), str(found["stderr"]), folder / name)
    log = folder / name / "log.txt"
    assert log.exists() is (name in LATER)
    if name in LATER:
        assert str(log) in str(found["stderr"])
        assert TRACEBACK in log.read_text() and message in log.read_text()


@pytest.mark.slow
def test_an_error_in_several_processes_is_one_message(folder: Path) -> None:
    options = ["DATASETS.ROOT", str(folder / "world"), "SOLVER.OPTIMIZER", "LION", "OUTPUT_DIR", "several"]
    words = [TRAIN_NET, *STUDENT, "--num-gpus", "2", "--dist-url", "auto", *CPU, *options]
    process = start(folder, words)
    assert process.returncode == 1
    message = "SOLVER.OPTIMIZER: 'LION' is unknown"
    check(message, process.stdout, process.stderr, folder / "several")
    assert TRACEBACK in (folder / "several" / "log.txt").read_text()


@pytest.mark.parametrize("name", ["flag", "variable"])
def test_the_traceback_is_printed_on_request(done: Done, name: str) -> None:
    found, stderr = done[name], str(done[name]["stderr"])
    assert found["returncode"] == 1
    assert TRACEBACK in stderr and "resolve_device" in stderr
    assert stderr.splitlines()[-1].startswith("error: MODEL.DEVICE is 'gpu'")


def test_the_same_type_inside_a_step_is_a_programming_error(folder: Path) -> None:
    words = [*DISTILL, "--import", "broken_plugin", *CPU, "DISTILL.METHODS", "['Broken']"]
    process = start(
        folder, [TRAIN_NET, *words, "DATASETS.ROOT", str(folder / "world"), "OUTPUT_DIR", "broken"]
    )
    stderr = process.stderr
    assert process.returncode == 1 and not any(line.startswith("error: ") for line in stderr.splitlines())
    assert TRACEBACK in stderr and "broken_plugin.py" in stderr
    assert "RuntimeError: the training failed at iteration 0: a mistake in the method" in stderr
    assert (folder / "broken" / "config.yaml").is_file()


def test_other_types_are_raised() -> None:
    def broken(argv: Sequence[str]) -> int:
        raise TypeError("a mistake")

    with pytest.raises(TypeError, match="a mistake"):
        run_cli(broken, [])


def test_a_tool_gets_its_own_words_and_returns_its_status() -> None:
    assert run_cli(lambda argv: len(argv), ["a", "--traceback", "b", "c"]) == 3
