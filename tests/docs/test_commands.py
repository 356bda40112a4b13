"""Every command in README.md and docs/*.md works: it is run here, by the test named here, or by CI."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, Command, ci_targets, commands, languages, make_recipes
from tests.docs.sandbox import NoRuleError, Sandbox

# Make targets that CI does not run, and the tests that do the same on small data.
TESTED_TARGETS = {
    "build": "tests/ops/test_build.py",
    "demo": "tests/cli/test_demo.py",
    "demo-mono": "tests/cli/test_demo.py",
    "bench": "tests/benchmarks/test_bench.py",
    "gpu-check": "tests/benchmarks/test_gpu_check.py",
    "reliability": "tests/reliability/test_proofs.py",
    "fuzz": "tests/fuzz/test_fuzz.py",
    "tables": "tests/docs/test_benchmark_tables.py",
}
# Scripts that are long however small the data are, or need recorded numbers, and the tests that run them.
TESTED_SCRIPTS = {
    "tools/demo.py": "tests/cli/test_demo.py",
    "tools/demo_mono.py": "tests/cli/test_demo.py",
    "tools/run_experiment.py": "tests/experiments/test_run.py",
    "docs/make_reliability_table.py": "tests/docs/test_reliability_table.py",
    "benchmarks.cuda_kernels": "tests/benchmarks/test_cuda_kernels.py",
    "tests.reliability": "tests/reliability/test_proofs.py",
    "tools/verify_golden.py": "tests/golden/test_verify.py",
    "tools/export.py": "tests/export/test_export.py",
    "tools/report.py": "tests/cli/test_report.py",
    "examples/deploy/nuscenes_scene.py": "tests/export/test_demo_world.py",
    "benchmarks.verify_deployment": "tests/export/test_demo_world.py",
    "benchmarks.bench": "tests/benchmarks/test_bench.py",
    "benchmarks.bench_capabilities": "tests/benchmarks/test_benchmarks.py",
    "benchmarks.bench_train_step": "tests/benchmarks/test_benchmarks.py",
    "benchmarks.gpu_check": "tests/benchmarks/test_gpu_check.py",
    "benchmarks.bench_layer": "tests/benchmarks/test_bench_layer.py",
    "benchmarks.bench_latency": "tests/benchmarks/test_deployment.py",
}
# Pages whose commands load packages of the user's own, read what evaluations left, or need several machines,
# and the tests that run every one of them.
TESTED_PAGES = {
    "extending.md": ("tests/docs/test_extending.py", "tests/examples/test_downstream.py"),
    "multi_machine.md": ("tests/engine/test_several_machines.py",),
    "visualization.md": (
        *("tests/cli/test_visualize.py", "tests/cli/test_visualize_stored.py"),
        "tests/examples/test_tracking.py",
    ),
}
SHELLS = {"sh", "shell", "console", "zsh"}


def pip_requirements(words: list[str]) -> set[str]:
    """What a line of pip installs and how, without versions and extras."""
    return {re.split(r"[<>=\[]", word)[0] for word in words if word != "--quiet"}


def check_make(target: str, sandbox: Sandbox) -> None:
    """A target exists, and is run by CI, by a test, or here."""
    recipes = make_recipes()
    if target not in recipes:
        raise NoRuleError(f"the Makefile has no target {target!r}")
    if target in ci_targets():
        return
    if target in TESTED_TARGETS:
        if not (ROOT / TESTED_TARGETS[target]).exists():
            raise NoRuleError(f"{TESTED_TARGETS[target]}, which tests it, does not exist")
        return
    for recipe in recipes[target]:
        check(recipe, sandbox)


def check_pip(words: list[str]) -> None:
    """The Makefile installs the same, so that CI has run it."""
    made = [r[3:] for recipe in make_recipes().values() for r in recipe if r[:3] == ["python", "-m", "pip"]]
    if pip_requirements(words[1:]) not in [pip_requirements(line) for line in made]:
        raise NoRuleError("the Makefile, and so CI, does not run this pip line")


def place_of_its_run(words: list[str]) -> Path:
    """Returns the test that runs a command of python; a path without a file where the sandbox does."""
    script = words[2] if words[1] == "-m" else words[1]
    return ROOT / TESTED_SCRIPTS.get(script, "none")


def check(words: list[str], sandbox: Sandbox) -> None:
    """Runs a command, or finds what runs it."""
    if words[0] == "make" and len(words) == 2:
        check_make(words[1], sandbox)
    elif words[0] == "pip":
        check_pip(words)
    elif words[0] == "python" and place_of_its_run(words).is_file():
        return
    elif words[0] in ("python", "torchrun"):
        sandbox.run(words)
    else:
        raise NoRuleError("it is no make, pip, python or torchrun command")


def report(command: Command, sandbox: Sandbox) -> str:
    """Why a command does not work as written; empty where it does."""
    try:
        check(command.words, sandbox)
    except NoRuleError as error:
        return f"no test and no CI step runs this command: {error}; see tests/docs/sandbox.py\n  {command}"
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        return f"this command does not work as written\n  {command}\n{error}"
    return ""


def commands_to_run(page: Path) -> list[Command]:
    """The commands of a page; README.md's only where no page of docs/ has the same words."""
    found = commands(page)
    if page.name != "README.md":
        return found
    elsewhere = [command.words for other in PAGES if other != page for command in commands(other)]
    return [command for command in found if command.words not in elsewhere]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_work_in_their_order(page: Path, tmp_path: Path) -> None:
    if page.name in TESTED_PAGES:
        assert all((ROOT / test).is_file() for test in TESTED_PAGES[page.name])
        return
    sandbox = Sandbox(tmp_path)
    problems = [report(command, sandbox) for command in commands_to_run(page)]
    assert not any(problems), "\n".join(filter(None, problems))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_in_bash_blocks(page: Path) -> None:
    assert not languages(page) & SHELLS, "write ```bash: only such blocks are tested"


def test_pages_have_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) >= 8


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("make coffee", "no target 'coffee'"),
        ("pip install bevkd2", "does not run this pip line"),
        ("python tools/unknown.py", "none of the scripts"),
        ("python tools/export_weights.py /path/to/file.pth out.pth", "nothing makes /path/to/file.pth real"),
        ("rm -r output", "no make, pip, python or torchrun"),
    ],
)
def test_a_command_without_rule_is_reported(line: str, reason: str, tmp_path: Path) -> None:
    message = report(Command(line.split(), "page.md:1"), Sandbox(tmp_path))
    assert message.startswith("no test and no CI step") and reason in message


def test_a_command_that_fails_is_reported_with_its_output(tmp_path: Path) -> None:
    words = ["python", "tools/export_weights.py", "gone.pth", "out.pth"]
    message = report(Command(words, "page.md:1"), Sandbox(tmp_path))
    assert message.startswith("this command does not work as written") and "gone.pth" in message
    assert "does not exist" in message


@pytest.mark.slow
def test_torchrun_takes_the_place_of_python(tmp_path: Path) -> None:
    """docs/getting_started.md names it in a sentence."""
    line = (
        "torchrun --nproc-per-node 8 tools/train_net.py --config-file configs/demo/student.yaml --eval-only"
    )
    words = [*line.split(), "MODEL.WEIGHTS", "output/demo/student/model_final.pth"]
    assert not report(Command(words, "page.md:1"), Sandbox(tmp_path))
    assert "copypaste" in (tmp_path / "log.txt").read_text()
