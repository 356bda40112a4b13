"""Which folders are runs, and what is read from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bevkd2.report.runs import read_runs, run_folders, seed_groups
from bevkd2.report.scores import read_evaluation
from tests.data.nuscenes_fixture import VERSION, FixtureWorld
from tests.engine.test_build import run as train_toy
from tests.engine.toys import toy_cfg


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A training of the toy model, whose data format the report does not know."""
    train_toy(toy_cfg(tmp_path / "toy"))
    return tmp_path / "toy"


def test_a_folder_of_runs_gives_those_of_a_demo_in_their_order(tmp_path: Path) -> None:
    for name in ("recommended", "other", "student", "teacher", "distilled"):
        (tmp_path / name / "inference").mkdir(parents=True)
        (tmp_path / name / "inference" / "config.yaml").write_text("SEED: 0\n")
    (tmp_path / "pictures").mkdir()
    found = [folder.name for folder in run_folders(tmp_path)]
    assert found == ["teacher", "student", "distilled", "recommended", "other"]
    assert run_folders(tmp_path / "other") == [tmp_path / "other"]
    assert run_folders(tmp_path / "pictures") == []


def test_names_tell_runs_apart_and_a_run_is_read_once(tmp_path: Path) -> None:
    folders = [tmp_path / a / b for a in ("x", "y") for b in ("run", "run2")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text("")
    assert [run.name for run in read_runs(folders[:2])] == ["run", "run2"]
    assert [run.name for run in read_runs(folders)] == ["x/run", "x/run2", "y/run", "y/run2"]
    assert len(read_runs([folders[0], folders[0] / ".." / "run"])) == 1


def test_a_data_format_without_files_has_the_scores_that_the_training_logged(toy: Path) -> None:
    (run,) = read_runs([toy])
    last = json.loads((toy / "metrics.json").read_text().splitlines()[-1])
    evaluation = run.evaluations[""]
    assert evaluation.scores == {"toy/score": pytest.approx(last["toy/score"]), "toy/count": 6}
    assert run.lacks["classes"] == [
        "no AP per class: the evaluation's files are gone, or its data format writes none"
    ]
    assert run.metrics is not None and len(run.metrics.rows) == 7 and "curves" not in run.lacks
    assert run.config["MODEL.META_ARCHITECTURE"] == "ToyDetector" and "config" not in run.lacks
    assert run.lacks["environment"] == ["no log.txt"]
    assert run.lacks["gradients"] == ["no distillation method"]


def test_losses_and_the_teachers_scores_are_not_scores_of_the_run(tmp_path: Path) -> None:
    row = {"iteration": 1, "total_loss": 1.0, "distill_raw/fitnet": 2.0, "teacher/bbox/mAP": 0.5}
    (tmp_path / "metrics.json").write_text(json.dumps(row) + "\n")
    (run,) = read_runs([tmp_path])
    assert not run.evaluations
    assert run.lacks["scores"] == ["no scores: it was not evaluated, or not to its end"]


def test_a_teacher_scored_before_the_first_evaluation_is_not_the_run(tmp_path: Path) -> None:
    rows = [{"iteration": 0, "total_loss": 1.0}, {"iteration": 1, "bbox/Car_3D_moderate_R40": 5.0}]
    teacher = {"AP_R40": {"car/3d/moderate": 50.0}, "AOS_R40": {}, "not_evaluated": []}
    for name in ("untold", "logged"):
        folder = tmp_path / name / "inference" / "teacher"
        folder.mkdir(parents=True)
        (folder / "kitti_scores.json").write_text(json.dumps(teacher))
        kept = rows if name == "logged" else rows[:1]
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        (tmp_path / name / "metrics.json").write_text(lines)
    untold, logged = read_runs([tmp_path / "untold", tmp_path / "logged"])
    assert list(untold.evaluations) == ["its teacher"] and not untold.own_evaluations
    assert untold.lacks["scores"] == ["no scores: it was not evaluated, or not to its end"]
    assert list(logged.evaluations) == ["", "its teacher"]
    assert logged.own_evaluations[""].scores == {"bbox/Car_3D_moderate_R40": 5.0}


def test_seeds_of_one_setting_are_a_group(tmp_path: Path) -> None:
    settings = {"a": (1, 0.1), "b": (2, 0.1), "c": (2, 0.1), "d": (1, 0.2)}
    for name, (seed, rate) in settings.items():
        (tmp_path / name).mkdir()
        text = f"SEED: {seed}\nOUTPUT_DIR: {name}\nSOLVER: {{BASE_LR: {rate}}}\n"
        (tmp_path / name / "config.yaml").write_text(text)
        (tmp_path / name / "metrics.json").write_text('{"iteration": 0, "total_loss": 1}\n')
    groups = seed_groups(read_runs([tmp_path / name for name in settings]))
    assert [sorted(run.config["SEED"] for run in group) for group in groups] == [[1, 2]]


def test_curves_and_scores_are_those_of_the_devkit(tmp_path: Path, fixture_world: FixtureWorld) -> None:
    from bevkd2.data import load_nuscenes
    from tests.evaluation.test_nuscenes import score

    scores = score(load_nuscenes(fixture_world.root, VERSION, "both"), tmp_path, noise=0.7)
    found = read_evaluation(tmp_path)
    assert found is not None and found.kind == "nuScenes"
    assert found.scores["mAP"] == scores["mAP"] and found.scores["mAOE (rad)"] == scores["mAOE"]
    (by_class,) = found.classes.values()
    assert by_class["car"] == scores["AP_car"] and by_class["barrier"] == 0
    assert found.errors["mATE (m)"]["car"] == pytest.approx(0.7, abs=0.01)
    assert found.errors["mAVE (m/s)"]["barrier"] is None
    assert found.curves["car"][0] == (0.0, 1.0) and len(found.curves["car"]) == 101


@pytest.mark.parametrize("text", ["[]", "{", '{"AP_R40": 1}', '{"AP_R40": {}, "AOS_R40": {}}'])
def test_a_file_that_no_evaluation_wrote_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "kitti_scores.json").write_text(text)
    with pytest.raises(ValueError, match=r"kitti_scores\.json"):
        read_evaluation(tmp_path)


def test_kittis_scores_and_curves(tmp_path: Path) -> None:
    precision = [1.0] * 21 + [None] + [0.0] * 19
    content = {
        "AP_R40": {"car/3d/moderate": 50.0, "car/3d/hard": None, "car/bbox/moderate": 60.0},
        "AOS_R40": {"car/bbox/moderate": 55.0},
        "not_evaluated": ["cyclist/3d/easy"],
        "precision": {"car/3d/moderate": precision},
    }
    (tmp_path / "kitti_scores.json").write_text(json.dumps(content))
    found = read_evaluation(tmp_path)
    assert found is not None and found.kind == "KITTI" and not found.errors and not found.lacks
    assert found.scores["car 3D moderate"] == 50 and found.scores["car 3D hard"] is None
    assert found.scores["car AOS moderate"] == 55
    assert found.classes["AP|R40, 3D moderate, percent"] == {"car": 50.0, "cyclist": None}
    curve = found.curves["car, 3D moderate"]
    assert len(curve) == 40 and curve[20] == (0.5, 1.0) and curve[-1] == (1.0, 0.0)
