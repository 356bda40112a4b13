"""Tests the ablation: rows name their settings, runs are not repeated, and the table has the stored scores.

That it trains is tested by the command of docs/results.md (tests/docs).
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import ablation_depth_guided as ablation
from bevkd2.config import load_config

ROOT = Path(__file__).parents[2]
SCORES = {"student": {0: 20.0, 1: 30.0}, "F": {0: 40.0, 1: 40.0}}
TEACHER = 80.0


def write_scores(folder: Path, moderate: float) -> None:
    """A file of scores as the evaluation writes it; 3D moderate is given, all others are 1."""
    ap = dict.fromkeys(ablation.COLUMNS.values(), 1.0) | {"car/3d/moderate": moderate}
    (folder / "inference").mkdir(parents=True)
    (folder / "inference" / "kitti_scores.json").write_text(json.dumps({"AP_R40": ap}))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["ablation_depth_guided.py", *arguments])
    ablation.main()


def test_table_has_the_stored_scores_and_finished_runs_are_not_repeated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("trained again"))
    write_scores(tmp_path / "teacher", TEACHER)
    for row, by_seed in SCORES.items():
        for seed, moderate in by_seed.items():
            write_scores(tmp_path / row / f"seed{seed}", moderate)
    out = tmp_path / "out.json"
    arguments = ["--rows", "student", "F", "--seeds", "0", "1", "--output", str(tmp_path), "--json", str(out)]
    run(monkeypatch, *arguments)
    content = json.loads(out.read_text())
    assert content["teacher"]["3D moderate"] == TEACHER and content["machine"]["processor"]
    found = {(run["row"], run["seed"]): run["3D moderate"] for run in content["runs"]}
    assert found == {(row, seed): ap for row, by_seed in SCORES.items() for seed, ap in by_seed.items()}
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
    ]
    header, rows = lines[0], {line[0]: line for line in lines[2:]}
    column = header.index("3D moderate")
    assert [rows[name][column] for name in ("teacher", "student", "F")] == ["80.00", "25.00", "40.00"]
    assert rows["student"][-2:] == ["7.07", "2"] and rows["F"][-2] == "0.00"  # of 20 and 30: 5 sqrt 2


def test_rows_are_those_of_the_papers_tables() -> None:
    config = ROOT / "configs" / "demo_mono" / "distill.yaml"
    student, *rows = ablation.ROWS.items()
    assert student == ("student", ("student", []))
    found = {}
    for name, (kind, options) in rows:
        distill = load_config(config, options).DISTILL
        node = distill.DEPTH_GUIDED
        prediction = (node.DISTANCE, node.DEPTH_ATTENTION, node.RHO)
        found[name] = (*distill.METHODS, distill.PERSPECTIVE_FEATURE.PERSPECTIVE, prediction)
        assert kind == "distill"
    feature, guided, full = "PerspectiveFeature", "DepthGuidedPrediction", ("l2", True, "exp")
    assert found == {
        "KL": (guided, True, ("kl", False, "off")),  # Table 1
        "L2": (guided, True, ("l2", False, "off")),
        "L2 + D": (guided, True, ("l2", True, "off")),
        "L2 + W (linear)": (guided, True, ("l2", False, "linear")),
        "L2 + W (exp)": (guided, True, ("l2", False, "exp")),
        "P: L2 + D + W (exp)": (guided, True, full),
        "F, M = 1 (FitNet)": (feature, False, full),  # Table 2
        "F": (feature, True, full),
        "F + P": (feature, guided, True, full),
    }


def test_a_failed_training_names_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []

    def fail(command: list[str], **kwargs: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(subprocess, "run", fail)
    arguments = ["--rows", "L2 + D", "--seeds", "5", "--iterations", "7", "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"exit code 3; see .*seed5/console\.txt"):
        run(monkeypatch, *arguments)
    (words,) = commands
    cfg = load_config(words[words.index("--config-file") + 1], words[words.index("OUTPUT_DIR") :])
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER) == (5, 7) and cfg.DISTILL.METHODS == ["DepthGuidedPrediction"]
    assert Path(cfg.DISTILL.TEACHER.WEIGHTS).name == "demo_mono_teacher.safetensors"


def test_an_unknown_row_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"\['G'\] are unknown; expected some of student"):
        run(monkeypatch, "--rows", "G")
