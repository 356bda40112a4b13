"""gpu_check.py on a machine without a GPU: its plan, and that it goes on after a step that fails."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import bench, bench_ms_deform_attn, gpu_check, run_once
from benchmarks.gpu_check import Machine, Step, run_step, without_missing
from tests.limits import PROGRAM_SECONDS

ROOT = Path(__file__).parents[2]
H200 = Machine("NVIDIA H200", "9.0", "2.11.0")


def arguments(monkeypatch: pytest.MonkeyPatch, *words: str) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *words])
    return gpu_check.parse_arguments()


def steps(monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Step]:
    return {step.name: step for step in gpu_check.plan(arguments(monkeypatch, *words), H200)}


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
    assert tuple(steps(monkeypatch))[:4] == gpu_check.QUICK_STEPS


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
        assert planned[tool].families == gpu_check.FAMILIES == bench.FAMILIES
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


class FakeSteps:
    """Steps that are programs of one line, in a folder, on a machine without a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
        self.patch, self.out = monkeypatch, out
        self.steps: list[Step] = []
        monkeypatch.setattr(gpu_check, "look_for_gpu", lambda python: H200)
        monkeypatch.setattr(gpu_check, "plan", lambda *_: self.steps)
        monkeypatch.setattr(gpu_check, "source_digest", lambda: "of the sources")

    def add(self, name: str, code: str, **options: Any) -> None:
        """Adds a step that runs a line of Python, and counts its runs in a file."""
        count = f"open({str(self.out / name)!r}, 'a').write('+')"
        self.steps.append(Step(name, [sys.executable, "-c", f"{count}; {code}"], **options))

    def run(self, *words: str) -> int:
        """Runs the check; returns its exit status."""
        arguments(self.patch, "--out", str(self.out), *words)
        return gpu_check.main()

    def runs(self) -> dict[str, int]:
        """Returns how often each step ran."""
        paths = {step.name: self.out / step.name for step in self.steps}
        return {name: len(path.read_text()) if path.is_file() else 0 for name, path in paths.items()}

    def report(self) -> dict[str, Any]:
        return json.loads((self.out / "nvidia_h200_check.json").read_text())

    def results(self) -> dict[str, str]:
        return {step["step"]: step["result"] for step in self.report()["steps"]}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeSteps:
    return FakeSteps(monkeypatch, tmp_path)


def test_steps_continue_after_a_failure_and_the_exit_code_is_nonzero(
    fake: FakeSteps, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.add("build", "raise SystemExit(2)")
    fake.add("tests", "pass")
    fake.steps.append(Step("memcheck", skip="there is none"))
    assert fake.run() == 1
    assert (fake.report()["gpu"], fake.report()["torch"]) == ("NVIDIA H200", "2.11.0")
    assert fake.results() == {
        "build": "failed: exit code 2", "tests": "passed", "memcheck": "skipped: there is none"
    }  # fmt: skip
    assert "failed: exit code 2" in capsys.readouterr().out
    fake.steps = fake.steps[1:]
    assert fake.run() == 0


def test_the_report_is_written_after_every_step_and_names_the_one_that_was_interrupted(
    fake: FakeSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.add("build", "pass")
    fake.add("tests", "pass")

    def interrupt(step: Step, timeout: float | None) -> gpu_check.Outcome:
        if step.name == "tests":
            raise KeyboardInterrupt
        return run_step(step, timeout)

    monkeypatch.setattr(gpu_check, "run_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fake.run()
    assert fake.results() == {"build": "passed", "tests": "failed: it was interrupted"}
    monkeypatch.undo()
    again = FakeSteps(monkeypatch, fake.out)
    again.steps = fake.steps
    assert again.run("--resume") == 0
    assert again.runs() == {"build": 1, "tests": 1}


def test_resuming_runs_what_has_not_passed(fake: FakeSteps, capsys: pytest.CaptureFixture[str]) -> None:
    made = fake.out / "library.so"
    fake.add("build", f"open({str(made)!r}, 'w')", makes=(made,))
    fake.add("tests", "raise SystemExit(1)")
    fake.add("baseline", "pass", always=True)
    assert fake.run() == 1
    assert fake.run("--resume") == 1
    assert fake.runs() == {"build": 1, "tests": 2, "baseline": 2}
    assert "build: passed before, with the same sources" in capsys.readouterr().out
    made.unlink()  # on a new machine
    fake.run("--resume")
    assert fake.runs()["build"] == 2
    assert fake.run() == 1  # without --resume
    assert fake.runs() == {"build": 3, "tests": 4, "baseline": 4}


def test_resuming_keeps_the_results_of_steps_that_are_not_chosen(fake: FakeSteps) -> None:
    fake.add("build", "pass")
    fake.add("tests", "pass")
    chosen, fake.steps = fake.steps, fake.steps[:1]
    fake.run()
    fake.steps = chosen[1:]
    fake.run("--resume")
    assert fake.results() == {"build": "passed", "tests": "passed"}


@pytest.mark.parametrize("changed", ["sources", "torch", "command"])
def test_a_step_that_passed_with_something_else_runs_again(
    fake: FakeSteps, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.add("build", "pass")
    fake.run()
    if changed == "sources":
        monkeypatch.setattr(gpu_check, "source_digest", lambda: "of other sources")
    elif changed == "torch":
        monkeypatch.setattr(gpu_check, "look_for_gpu", lambda python: Machine("NVIDIA H200", "9.0", "2.12"))
    else:
        fake.steps = []
        fake.add("build", "1")
    fake.run("--resume")
    assert fake.runs() == {"build": 2}


def test_the_digest_is_of_every_source_and_of_no_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    for name in ("csrc/box3d/kernel.cu", "setup.py", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    first = gpu_check.source_digest()
    (tmp_path / "csrc" / "result.json").write_text("{}")
    assert gpu_check.source_digest() == first
    (tmp_path / "csrc" / "box3d" / "kernel.cu").write_text("2")
    second = gpu_check.source_digest()
    (tmp_path / "csrc" / "box3d" / "kernel.cu").rename(tmp_path / "csrc" / "box3d" / "other.cu")
    assert len({first, second, gpu_check.source_digest()}) == 3


@pytest.mark.parametrize(
    ("module", "name"),
    [("json", ""), ("benchmarks.gpu_check", ""), ("bevkd2_no_such.part", "bevkd2_no_such")],
)
def test_a_missing_package_is_found(module: str, name: str) -> None:
    assert gpu_check.missing_package(module, sys.executable) == name


def test_what_needs_a_missing_package_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {"benchmarks.bench_ragged": "fvcore", "pytest": "pytest"}
    monkeypatch.setattr(gpu_check, "missing_package", lambda module, python: needs.get(module, ""))
    planned = steps(monkeypatch, "--families", "bench_ragged", "bench_box3d")
    assert without_missing(planned["tests"], "python")[0].skip == "it needs pytest, which is not installed"
    step, left_out = without_missing(planned["small_cases"], "python")
    assert step.command[-2:] == ["--families", "bench_box3d"]
    assert left_out == ["bench_ragged, it needs fvcore"]
    assert (
        gpu_check.Outcome("bench", "passed", 1.0, [], left_out)
        .line()
        .endswith("passed; left out: bench_ragged, it needs fvcore")
    )
    planned = steps(monkeypatch, "--families", "bench_ragged")
    assert without_missing(planned["bench"], "python")[0].skip == "bench_ragged, it needs fvcore"


def test_make_needs_neither_pip_nor_an_environment(tmp_path: Path) -> None:
    words = ["make", "--dry-run", "gpu-check", f"VENV={tmp_path}", "PYTHON=/some/python", "ARGS=--resume"]
    # What `make test` sets is for its own make, and would change what this one prints.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    run = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "check": True}
    run["timeout"] = PROGRAM_SECONDS
    assert subprocess.run(words, **run).stdout.split() == [
        *("/some/python", "-m", "benchmarks.gpu_check", "--resume")
    ]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert subprocess.run(words, **run).stdout.startswith(f"{tmp_path}/bin/python -m")


def test_the_files_with_gpu_tests_are_known() -> None:
    texts = {path: path.read_text() for path in ROOT.glob("tests/**/test_*.py") if path != Path(__file__)}
    marked = {
        str(path.relative_to(ROOT))
        for path, text in texts.items()
        if "@pytest.mark.gpu" in text or "(DeformAttnTester)" in text  # whose bases include Cuda's tests
    }
    assert marked == {*gpu_check.TESTS, *gpu_check.MODEL_TESTS}
    known = {name for text in texts.values() for name in re.findall(r"def (test_\w+)", text)}
    known |= set(re.findall(r"def (test_\w+)", (ROOT / "tests" / "ops" / "deform_attn_cuda.py").read_text()))
    for name in re.findall(r"test_\w+", gpu_check.QUICK_TESTS):
        assert any(found.startswith(name) for found in known), f"QUICK_TESTS: there is no test {name}"


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


@pytest.mark.parametrize("options", [[], ["--compare"]], ids=["ours", "with baselines"])
def test_run_once_runs_every_case(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    families = ["--families", "bench_ms_deform_attn", "bench_distill_loss"]
    monkeypatch.setattr(sys, "argv", ["run_once.py", *families, *options])
    assert run_once.main() == 0
    printed = capsys.readouterr().out
    assert "Deformable attention: spatial, local, float32" in printed
    assert "Distillation losses: BEV response, float32" in printed


def test_run_once_fails_where_a_baseline_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    form = bench_ms_deform_attn.grid_sample_form
    monkeypatch.setattr(bench_ms_deform_attn, "grid_sample_form", lambda *inputs: 1.01 * form(*inputs))
    monkeypatch.setattr(sys, "argv", ["run_once.py", "--families", "bench_ms_deform_attn"])
    assert run_once.main() == 0
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--compare"])
    with pytest.raises(RuntimeError, match="grid_sample differs from bevkd2"):
        run_once.main()
