"""gpu_check.py on a machine without a GPU: its plan, and that it goes on after a step that fails."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu_check, run_once
from benchmarks.gpu_check import Step, run_step
from tests.limits import PROGRAM_SECONDS

ROOT = Path(__file__).parents[2]


def arguments(monkeypatch: pytest.MonkeyPatch, *words: str) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *words])
    return gpu_check.parse_arguments()


def steps(monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Step]:
    return {step.name: step for step in gpu_check.plan(arguments(monkeypatch, *words), "NVIDIA H200", "9.0")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_check_without_a_gpu_exits_with_a_message() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("gpu_check: the torch of") and "sees no GPU here" in done.stderr


def test_a_python_without_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(returncode=1, stdout="", stderr="Traceback\nModuleNotFoundError: torch")
    monkeypatch.setattr(gpu_check.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match="/some/python cannot import torch: ModuleNotFoundError"):
        gpu_check.look_for_gpu("/some/python")


def test_the_cuda_library_is_built_for_the_gpus_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    build = steps(monkeypatch, "--python", "/some/python")["build"]
    assert build.command == ["/some/python", "setup.py", "build_ext", "--inplace"]
    assert build.environment == {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}


def test_steps_have_a_fixed_order_and_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuple(steps(monkeypatch)) == gpu_check.STEPS
    assert list(steps(monkeypatch, "--steps", "bench", "tests")) == ["tests", "bench"]


def test_sanitizer_steps_are_skipped_if_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "find_sanitizer", lambda: "")
    assert all("no compute-sanitizer" in steps(monkeypatch)[tool].skip for tool in gpu_check.SANITIZERS)


def test_a_sanitizer_finding_fails_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "find_sanitizer", lambda: "/cuda/bin/compute-sanitizer")
    planned = steps(monkeypatch)
    for tool in gpu_check.SANITIZERS:
        assert planned[tool].command[:5] == [
            "/cuda/bin/compute-sanitizer", "--tool", tool, "--error-exitcode", "1",
        ]  # fmt: skip
        assert planned[tool].command[-1] == "--tests"
        assert planned[tool].environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def test_the_sanitizer_of_cuda_home_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu_check.find_sanitizer() == ""
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.touch()
    assert gpu_check.find_sanitizer() == str(tool)


@pytest.mark.parametrize(
    ("code", "timeout", "result"),
    [
        ("pass", None, "passed"),
        ("raise SystemExit(3)", None, "failed: exit code 3"),
        ("import time; time.sleep(30)", 0.1, "failed: it ran longer than 0.1 s"),
    ],
)
def test_step_results_are_passed_failed_or_skipped(code: str, timeout: float | None, result: str) -> None:
    assert run_step(Step("step", [sys.executable, "-c", code]), timeout).result == result


def test_steps_continue_after_a_failure_and_the_exit_code_is_nonzero(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments(monkeypatch, "--out", str(tmp_path))
    codes = {"build": "raise SystemExit(2)", "tests": "pass"}

    def planned(*_: Any) -> list[Step]:
        ran = [Step(name, [sys.executable, "-c", code]) for name, code in codes.items()]
        return [*ran, Step("memcheck", skip="there is none")]

    monkeypatch.setattr(gpu_check, "look_for_gpu", lambda python: ("NVIDIA H200", "9.0"))
    monkeypatch.setattr(gpu_check, "plan", planned)
    assert gpu_check.main() == 1
    report = json.loads((tmp_path / "nvidia_h200_check.json").read_text())
    assert report["gpu"] == "NVIDIA H200"
    results = {step["step"]: step["result"] for step in report["steps"]}
    assert results == {
        "build": "failed: exit code 2", "tests": "passed", "memcheck": "skipped: there is none"
    }  # fmt: skip
    assert "failed: exit code 2" in capsys.readouterr().out
    codes["build"] = "pass"
    assert gpu_check.main() == 0


@pytest.mark.slow
def test_sanitizers_run_the_gpu_tests_without_cuda_graphs() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", *run_once.TESTS]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    watched = set(re.findall(r"::(test_\w+)", done.stdout))
    assert {
        "test_cuda_matches_the_reference",
        "test_cuda_is_reproducible_with_deterministic_algorithms",
        "test_cuda_matches_the_cpu_and_itself",
        "test_cuda_upstream_gradients",
        "test_suppression_on_cuda_is_the_cpus",
    } <= watched
    for path in run_once.OPS.glob("*.py"):
        for name, backbone in re.findall(
            r"def (test_\w+)(.*?)(?=\n    def |\ndef |\Z)", path.read_text(), re.DOTALL
        ):
            assert name not in watched or "CUDAGraph" not in backbone


def test_run_once_runs_ours_of_every_case(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    families = ["--families", "bench_ms_deform_attn", "bench_distill_loss"]
    monkeypatch.setattr(sys, "argv", ["run_once.py", *families])
    assert run_once.main() == 0
    printed = capsys.readouterr().out
    assert "Deformable attention: spatial, local, float32" in printed
    assert "Distillation losses: BEV response, float32" in printed
