"""A user's error is one message and the exit status 1; programming errors keep their traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bevkd2.cli.run import run_cli
from bevkd2.data.synthetic import WorldConfig, generate

ROOT = Path(__file__).parents[2]
TRAIN_NET = ROOT / "tools" / "train_net.py"
STUDENT, DISTILL = (
    ("--config-file", "configs/demo/student.yaml"),
    ("--config-file", "configs/demo/distill.yaml"),
)
CPU = ("MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "1", "DATALOADER.NUM_WORKERS", "0")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = WorldConfig(num_train_scenes=1, num_val_scenes=1, frames_per_scene=2, image_size=(88, 32))
    return generate(config, tmp_path_factory.mktemp("errors") / "world", progress=False)


def train_net(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, str(TRAIN_NET), *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


CASES = {
    "unknown key": ((*STUDENT, "SOLVER.BASE_LRR", "1"), "unknown config key 'SOLVER.BASE_LRR'"),
    "no such config": (("--config-file", "nowhere.yaml"), "config file nowhere.yaml does not exist"),
    "no such plugin": ((*STUDENT, "--import", "no_such_package"), "--import no_such_package"),
    "no data": ((*STUDENT, *CPU, "DATASETS.ROOT", "/nowhere/at/all"), "/nowhere/at/all"),
    "no weights": ((*STUDENT, *CPU, "MODEL.WEIGHTS", "nowhere.pth"), "nowhere.pth"),
    "no teacher": ((*DISTILL, *CPU, "DISTILL.TEACHER.WEIGHTS", "nowhere.pth"), "nowhere.pth does not exist"),
    "no such method": ((*DISTILL, *CPU, "DISTILL.METHODS", "['Telepathy']"), "Telepathy"),
    "wrong value": ((*STUDENT, *CPU, "SOLVER.OPTIMIZER", "LION"), "SOLVER.OPTIMIZER: 'LION' is unknown"),
    "several processes": (
        (*STUDENT, *CPU, "--num-gpus", "2", "SOLVER.OPTIMIZER", "LION"),
        "SOLVER.OPTIMIZER: 'LION' is unknown",
    ),
}
OPENED_A_LOG = {"no data", "no weights", "no teacher", "no such method", "wrong value", "several processes"}


def arranged(words: Sequence[str], *options: str) -> list[str]:
    """Flags before options, which argparse takes to be the rest of the line."""
    flags = [w for pair in zip(words[::2], words[1::2], strict=True) if pair[0][0] == "-" for w in pair]
    rest = [w for pair in zip(words[::2], words[1::2], strict=True) if pair[0][0] != "-" for w in pair]
    return [*flags, *options, *rest]


@pytest.mark.parametrize("case", CASES)
def test_a_users_error_is_one_message(case: str, world: Path, tmp_path: Path) -> None:
    words, message = CASES[case]
    root = [] if case == "no data" else ["DATASETS.ROOT", str(world)]
    done = train_net(*arranged([*words, *root, "OUTPUT_DIR", str(tmp_path)]))
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1 and message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout and "--traceback prints it" in done.stderr
    assert "running with the config" not in done.stdout and not (tmp_path / "config.yaml").exists()
    assert (tmp_path / "log.txt").exists() is (case in OPENED_A_LOG)
    if case in OPENED_A_LOG:
        log = (tmp_path / "log.txt").read_text()
        assert "Traceback (most recent call last)" in log and message in log


@needs_no_gpu
def test_no_gpu(tmp_path: Path) -> None:
    done = train_net(*STUDENT, "MODEL.DEVICE", "cuda", "OUTPUT_DIR", str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "add MODEL.DEVICE cpu to run on the CPU" in done.stderr


@pytest.mark.parametrize(("flags", "environment"), [(["--traceback"], "0"), ([], "1")])
def test_the_traceback_is_printed_on_request(flags: list[str], environment: str, tmp_path: Path) -> None:
    words = [*STUDENT, *flags, "MODEL.DEVICE", "gpu", "OUTPUT_DIR", str(tmp_path)]
    done = train_net(*words, BEVKD2_TRACEBACK=environment)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr and "resolve_device" in done.stderr
    assert "error: MODEL.DEVICE is 'gpu'" in done.stderr.splitlines()[-1]


BROKEN_METHOD = """
from bevkd2.distill import DistillMethod, register_method


@register_method
class Broken(DistillMethod):
    node = "BROKEN"

    def forward(self, student, teacher, targets):
        raise ValueError("a mistake in the method")
"""


def test_the_same_type_inside_a_step_is_a_programming_error(world: Path, tmp_path: Path) -> None:
    (tmp_path / "broken_plugin.py").write_text(BROKEN_METHOD)
    words = [*DISTILL, "--import", "broken_plugin", *CPU, "DATASETS.ROOT", str(world)]
    words += ["DISTILL.METHODS", "['Broken']", "OUTPUT_DIR", str(tmp_path / "output")]
    done = train_net(*words, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 1 and "error: " not in done.stderr.splitlines()[-1].lower().split("runtime")[0]
    assert "Traceback" in done.stderr and "broken_plugin.py" in done.stderr
    assert "RuntimeError: the training failed at iteration 0: a mistake in the method" in done.stderr


def test_other_types_are_raised() -> None:
    def broken(argv: Sequence[str]) -> int:
        raise TypeError("a mistake")

    with pytest.raises(TypeError, match="a mistake"):
        run_cli(broken, [])


def test_a_tool_gets_its_own_words_and_returns_its_status() -> None:
    assert run_cli(lambda argv: len(argv), ["a", "--traceback", "b", "c"]) == 3
