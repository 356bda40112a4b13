"""Runs are resumed after a kill, failures are named and stop nothing, finished runs are not run again."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bevkd2.checkpoint import load_file, save_file
from bevkd2.cli import run_experiment
from bevkd2.experiments import run as run_module
from bevkd2.experiments.results import result_path
from bevkd2.experiments.run import average_checkpoints, run_folder, run_one
from bevkd2.experiments.runner import run_all
from bevkd2.experiments.spec import Experiment, read_experiment
from tests.experiments import tiny
from tests.limits import PROGRAM_SECONDS

ROOT = Path(__file__).parents[2]
ROWS = [{"name": "plain"}, {"name": "broken", "overrides": {"SOLVER.BASE_LR": 1e38}}]
# Ends the process silently before an iteration, as a power cut does.
KILLED = """
import os, sys
from bevkd2.engine.trainer import DistillTrainer
step = DistillTrainer.run_step
def run_step(self):
    if self.iter == 3:
        os.kill(os.getpid(), 9)
    step(self)
DistillTrainer.run_step = run_step
from bevkd2.cli.console import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("experiment"), rows=ROWS)


@pytest.fixture(scope="module")
def whole(path: Path) -> tuple[int, str]:
    """Exit status and output of the whole experiment, of which one row fails."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        code = run_experiment.main([str(path), "--jobs", "2", "--workers", "1", *places(path)])
    return code, printed.getvalue()


def environment() -> dict[str, str]:
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}


def places(path: Path, name: str = "whole") -> list[str]:
    folder = path.parent / name
    return ["--output", str(folder / "output"), "--results", str(folder / "results")]


def result_of(path: Path, name: str, row: str = "plain") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (path.parent / name / "results" / "tiny" / f"{row}_0.json").read_text()
    )
    return found


def test_a_failed_row_is_named_and_stops_nothing(path: Path, whole: tuple[int, str]) -> None:
    code, text = whole
    lines = text.splitlines()
    assert code == 1, text
    (failed,) = [i for i, line in enumerate(lines) if "FAILED" in line]
    assert "FAILED  broken seed 0," in lines[failed] and "exit status 1" in lines[failed]
    shown = "\n".join(lines[failed + 1 : failed + 10])
    assert "error: iteration" in shown and "broken_0/console.txt" in shown
    (done,) = [line for line in lines if "] done " in line]
    assert "done    plain seed 0," in done and "Car_3D_moderate_R40@0.5 0.000, Car_BEV" in done
    assert "tiny: 2 runs, 2 to do, 2 at a time" in text and "1 runs failed: broken seed 0" in text
    assert "Not run: broken." in text
    pictures = {file.name for file in (path.parent / "whole" / "output" / "tiny").glob("*.*")}
    assert pictures == {"tables.md", "tiny_intervals.png", "tiny_curves.png"}


def test_shares_of_the_gradient_are_those_of_the_trained_student(path: Path, whole: tuple[int, str]) -> None:
    trained = path.parent / "whole" / "output" / "tiny" / "plain_0"
    student = path.parent / "student.yaml"
    distilled = path.parent / "distilled.yaml"
    teacher = {"CONFIG": str(student), "WEIGHTS": str(trained / "averaged.pth")}
    settings = {"TEACHER": teacher, "METHODS": ["PKD"], "FACTOR": 1.0}
    content = {"_BASE_": str(student), "MODEL": {"META_ARCHITECTURE": "Distiller"}, "DISTILL": settings}
    distilled.write_text(yaml.safe_dump(content))
    folder = path.parent / "distilled"
    experiment = read_experiment(
        tiny.write(folder, rows=[{"name": "plain"}, {"name": "pkd", "config": str(distilled)}])
    )
    words = ["SOLVER.MAX_ITER", 4, "DATASETS.ROOT", str(path.parent / "train")]
    assert run_module._gradients(experiment.rows["plain"], words, trained) == {}
    found = run_module._gradients(experiment.rows["pkd"], words, trained)
    assert set(found) == {"loss_distill_pkd"}
    share = found["loss_distill_pkd"]
    assert share["image_backbone"] > 0 and share["head"] == 0  # PKD is a loss of the neck's features


def test_a_result_has_what_tables_and_readers_need(path: Path, whole: tuple[int, str]) -> None:
    found = result_of(path, "whole")
    assert (found["experiment"], found["row"], found["seed"]) == ("tiny", "plain", 0)
    assert found["torch"] == torch.__version__ and found["machine"]["threads"] == 1
    assert found["seconds"] > 0 and found["resumed_at"] == 0
    assert set(found["metrics"]) == {
        "Car_3D_moderate_R40@0.5",
        "Car_BEV_easy_R40",
        "Car_2D_moderate_R40",
    }
    assert len(found["units"]) == 3 and {len(values) for values in found["without"].values()} == {3}
    assert [entry["iteration"] for entry in found["curve"]] == [2, 4]
    assert found["losses"]["total_loss"] > 0
    settings = found["settings"]
    assert {Path(name).name for name in settings["training_files"]} == {"train"}
    assert {Path(name).name for name in settings["evaluation_files"]} == {"holdout"}
    evaluated = path.parent / "whole" / "output" / "tiny" / "plain_0" / "evaluation" / "inference" / "data"
    assert len(list(evaluated.glob("*.txt"))) == 3  # the hold-out's images, not the training world's two


@pytest.mark.slow
def test_the_world_that_ended_the_training_is_not_scored_again(path: Path, whole: tuple[int, str]) -> None:
    content = tiny.content(path.parent)
    worlds = dict.fromkeys(("train", "holdout"), content["worlds"]["train"])
    folder = path.parent / "again"
    experiment = read_experiment(tiny.write(folder, worlds=worlds, average_last=0))
    output, results = folder / "output", folder / "results"
    found = json.loads(
        run_one(experiment, experiment.rows["plain"], 0, output=output, results=results).read_text()
    )
    assert not (run_folder(output, experiment.rows["plain"], 0) / "evaluation").exists()
    assert len(found["units"]) == 2 and set(found["metrics"]) == {*experiment.primary, *experiment.secondary}


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(path: Path, whole: tuple[int, str]) -> None:
    words = ["experiment", str(path), "--one", "--rows", "plain", "--seeds", "0", *places(path, "killed")]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        timeout=PROGRAM_SECONDS,
        check=False,
    )
    assert done.returncode == -9
    folder = path.parent / "killed"
    assert not list((folder / "results").rglob("*.json"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        experiment = read_experiment(path)
        output, results = folder / "output", folder / "results"
        run_one(experiment, experiment.rows["plain"], 0, output=output, results=results)
    finally:
        torch.set_num_threads(threads)
    resumed, expected = result_of(path, "killed"), result_of(path, "whole")
    assert resumed["resumed_at"] == 3
    for key in ("metrics", "without", "settings", "curve"):
        assert resumed[key] == expected[key], key
    first, second = (
        load_file(path.parent / name / "output" / "tiny" / "plain_0" / "averaged.pth")["model"]
        for name in ("whole", "killed")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def command(path: Path, *words: str) -> list[str]:
    return [str(path), *words, *places(path)]


def test_finished_runs_are_not_run_again(
    path: Path, whole: tuple[int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = result_of(path, "whole")
    assert run_experiment.main(command(path, "--rows", "plain")) == 0
    assert "tiny: 1 runs, 0 to do" in capsys.readouterr().out and result_of(path, "whole") == before


def test_other_settings_are_refused_until_rerun(
    path: Path, whole: tuple[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result and the training's folder are checked, and --rerun discards both."""
    experiment = read_experiment(path)
    row = experiment.rows["plain"]
    common = {**row.overrides, "SOLVER.BASE_LR": 0.001}
    worlds = tiny.content(path.parent)["worlds"]
    changed = tiny.write(tmp_path, rows=[{"name": "plain"}], overrides=common, worlds=worlds)
    words = [str(changed), *places(path)]
    digests = r"of digest [0-9a-f]{16}, but .*tiny\.yaml now gives [0-9a-f]{16}"
    message = rf"plain_0\.json was made .*{digests} \(SOLVER.BASE_LR: 0.002, now 0.001\).*--rerun"
    with pytest.raises(ValueError, match=message):
        run_experiment.main(words)
    output, results = path.parent / "whole" / "output", path.parent / "whole" / "results"
    other = read_experiment(changed)
    with pytest.raises(ValueError, match=r"plain_0 was made with settings \(training\).*--rerun"):
        run_one(other, other.rows["plain"], 0, output=output, results=tmp_path / "results")
    kept = result_path(results, row, 0).read_text()
    run: list[tuple[str, int]] = []
    monkeypatch.setattr(run_experiment, "run_all", lambda _, runs, *__, **___: run.extend(runs) or [])
    assert run_experiment.main([*words, "--rerun"]) == 0
    assert [(row.name, seed) for row, seed in run] == [("plain", 0)]
    assert not result_path(results, row, 0).exists()
    assert not run_folder(output, row, 0).exists()
    result_path(results, row, 0).write_text(kept)


def test_two_processes_do_not_run_one_run(path: Path, whole: tuple[int, str], tmp_path: Path) -> None:
    experiment = read_experiment(path)
    row = experiment.rows["plain"]
    folder = run_folder(tmp_path, row, 0)
    folder.mkdir(parents=True)
    with (
        run_module._locked(folder),
        pytest.raises(ValueError, match=r"another process runs .*plain_0 already"),
    ):
        run_one(experiment, row, 0, output=tmp_path, results=tmp_path / "results")


def test_missing_weights_are_named(path: Path, whole: tuple[int, str], tmp_path: Path) -> None:
    worlds = tiny.content(path.parent)["worlds"]
    keys = {"MODEL.WEIGHTS": "gone.pth"}
    experiment = read_experiment(tiny.write(tmp_path, overrides=keys, worlds=worlds))
    with pytest.raises(FileNotFoundError, match=r"row plain: the weights gone\.pth do not exist"):
        run_module.run_settings(experiment, experiment.rows["plain"], 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "0"], "--jobs is 0"),
        (["--rows", "plane"], "--rows: plane is unknown; .* has plain, broken"),
        (["--seeds", "7"], "--seeds: 7 is unknown; .* has 0"),
    ],
)
def test_wrong_options_are_named(words: list[str], message: str, path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run_experiment.main([str(path), *words])


def test_a_world_of_other_arguments_is_refused(path: Path, whole: tuple[int, str], tmp_path: Path) -> None:
    worlds = tiny.content(path.parent)["worlds"]
    worlds["train"]["arguments"] += " --seed 4"
    changed = tiny.write(tmp_path, worlds=worlds)
    with pytest.raises(FileExistsError, match=r"train holds a synthetic world of another .*seed: 0, now 4"):
        run_experiment.main([str(changed), *places(path)])


def test_runs_share_jobs_and_say_one_line_an_event(tmp_path: Path) -> None:
    """Runs of a program that takes no time: the second and fourth fail, two are never more at a time."""
    experiment: Experiment = tiny.marked(tmp_path, seeds=[0, 1, 2, 3])
    tiny.invent(experiment, tmp_path / "results", {"plain": {0: 0.5, 2: 0.25}})
    program = "import os, sys; print('threads', os.environ['OMP_NUM_THREADS']); sys.exit(int(sys.argv[1]))"
    said: list[str] = []
    failed = run_all(
        experiment,
        experiment.runs(),
        lambda row, seed: [sys.executable, "-c", program, str(seed % 2 * 3)],
        output=tmp_path / "output",
        results=tmp_path / "results",
        jobs=2,
        say=said.append,
    )
    assert sorted((run.seed, run.code) for run in failed) == [(1, 3), (3, 3)]
    assert sum(line.startswith("start ") for line in said) == 4
    done = sorted(line for line in said if line.startswith("done "))
    assert len(done) == 2 and "0.500" in done[0] and "left, about" in done[0]
    bad = sorted(line for line in said if line.startswith("FAILED "))
    assert "plain seed 1" in bad[0] and "exit status 3" in bad[0] and "threads 1" in bad[0]


def test_an_interrupt_ends_the_runs_and_starts_no_more(tmp_path: Path) -> None:
    experiment = tiny.marked(tmp_path, seeds=[0, 1, 2])
    program = "import sys, time; time.sleep(int(sys.argv[1])); sys.exit(3)"
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("FAILED"):
            raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_all(
            experiment,
            experiment.runs(),
            lambda row, seed: [sys.executable, "-c", program, str(60 * seed)],
            output=tmp_path / "output",
            results=tmp_path / "results",
            jobs=2,
            say=say,
        )
    assert time.monotonic() - begin < 50
    assert sum(line.startswith("FAILED") for line in said) == 1


def test_average_of_the_last_checkpoints(tmp_path: Path) -> None:
    for iteration, value in ((1, 1.0), (3, 2.0), (5, 6.0)):
        state = {"w": torch.full((2,), value), "batches": torch.tensor(iteration)}
        save_file(
            {"model": state, "classes": ["Car"], "iteration": iteration},
            tmp_path / f"model_{iteration:07d}.pth",
        )
    save_file({"model": {"w": torch.zeros(2), "batches": torch.tensor(9)}}, tmp_path / "model_best.pth")
    (tmp_path / "model_9.pth").write_bytes(b"the user's own")
    content = load_file(average_checkpoints(tmp_path, 2))
    assert content["classes"] == ["Car"] and content["model"]["batches"] == 5
    assert torch.equal(content["model"]["w"], torch.full((2,), 4.0))
    with pytest.raises(ValueError, match=r"average_last is 4, but .* has 3 checkpoints"):
        average_checkpoints(tmp_path, 4)


def test_imported_packages_are_imported_in_every_run(
    path: Path, whole: tuple[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_methods.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    commands: list[list[str]] = []

    def run_all_instead(experiment: Any, runs: Any, command: Any, **_: Any) -> list[Any]:
        commands.append(command(experiment.rows["plain"], 0))
        return []

    monkeypatch.setattr(run_experiment, "run_all", run_all_instead)
    words = [str(path), "--rows", "plain", "--import", "my_methods", *places(path)]
    assert run_experiment.main(words) == 0
    assert "my_methods" in sys.modules
    assert commands[0][commands[0].index("--import") + 1] == "my_methods"
    with pytest.raises(ImportError, match="--import no_such_package"):
        run_experiment.main([str(path), "--import", "no_such_package", *places(path)])
