from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bevkd2
from bevkd2.cli import console, visualize
from tests.limits import PROGRAM_SECONDS

ROOT = Path(__file__).parents[2]


def run(*words: str, cwd: Path, code: str = "") -> subprocess.CompletedProcess[str]:
    """Runs ``bevkd2 words`` from another folder, then ``code``."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    script = f"""
import sys
from bevkd2.cli.console import main
try:
    status = main({list(words)!r})
except SystemExit as end:
    status = end.code
{code}
sys.exit(status)
"""
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
        check=False,
    )


def test_help_lists_every_command_and_imports_no_tool(tmp_path: Path):
    heavy = "print(sorted({'torch', 'numpy', 'cv2'} & set(sys.modules)))"
    done = run("--help", cwd=tmp_path, code=heavy)
    assert done.returncode == 0, done.stderr
    for name, command in console.COMMANDS.items():
        assert f"  {name} " in done.stdout and command.summary in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", console.COMMANDS)
def test_every_tool_takes_its_command_line_and_says_its_name(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/bevkd2", name, "--help"])
    with pytest.raises(SystemExit) as end:
        console.main()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: bevkd2 {name} ")
    assert sys.argv[0] == "/usr/bin/bevkd2"


def test_every_tool_has_a_command_and_the_script_the_same_function():
    steps = {"__init__", "__main__", "console", "demo_base", "paths", "run", "stored_detections"}
    steps |= {f"visualize_{name}" for name in visualize.COMMANDS}
    tools = {path.stem for path in (ROOT / "bevkd2" / "cli").glob("*.py")} - steps
    assert {command.module for command in console.COMMANDS.values()} == tools
    for tool in tools:
        script = "train_net" if tool == "train" else tool
        assert f"from bevkd2.cli.{tool} import main" in (ROOT / "tools" / f"{script}.py").read_text()


def test_kitti_eval_scores_without_torch(kitti_world: Path, tmp_path: Path):
    labels = kitti_world / "training" / "label_2"
    found = tmp_path / "found"
    found.mkdir()
    for label in labels.glob("*.txt"):
        lines = [line for line in label.read_text().splitlines() if not line.startswith("DontCare")]
        (found / label.name).write_text("".join(f"{line} 0.9\n" for line in lines))
    words = ("kitti-eval", "--gt", str(labels.parent), "--det", str(found))
    done = run(*words, cwd=tmp_path, code="print('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr
    assert "images, percent" in done.stdout and done.stdout.splitlines()[-1] == "False"


def test_eval_is_train_with_eval_only(monkeypatch: pytest.MonkeyPatch):
    words = []
    train = importlib.import_module("bevkd2.cli.train")
    monkeypatch.setattr(train, "main", lambda argv: words.append(argv) or 3)
    assert console.main(["eval", "--config-file", "a.yaml", "SEED", "1"]) == 3
    assert console.main(["train", "--config-file", "a.yaml"]) == 3
    assert words == [["--eval-only", "--config-file", "a.yaml", "SEED", "1"], ["--config-file", "a.yaml"]]


def test_an_unknown_command_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        console.main(["distil"])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert "distil" in message and "export-weights" in message


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        console.main(["--version"])
    assert capsys.readouterr().out.strip() == f"bevkd2 {bevkd2.__version__}"
