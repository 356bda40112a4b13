"""An experiment's YAML file is read strictly, and its settings are what results depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bevkd2.distill import is_distillation, teacher_config
from bevkd2.experiments.results import finished, result_path, write_result
from bevkd2.experiments.spec import digest, read_experiment
from tests.docs.pages import ROOT, blocks
from tests.experiments import tiny

WORLD = {"root": "a", "arguments": "--seed 1"}


def test_runs_go_seed_by_seed_and_overrides_are_merged(tmp_path: Path) -> None:
    rows = [{"name": "plain"}, {"name": "wide", "label": "Wide", "overrides": {"SOLVER.MAX_ITER": 8}}]
    rows.append({"name": "few", "seeds": [2]})
    experiment = read_experiment(tiny.write(tmp_path, rows=rows, seeds=[0, 2]))
    names = [(row.name, seed) for row, seed in experiment.runs()]
    assert names == [("plain", 0), ("wide", 0), ("plain", 2), ("wide", 2), ("few", 2)]
    assert experiment.rows["wide"].label == "Wide" and experiment.rows["few"].label == "few"
    cfg = experiment.rows["wide"].config_of(2)
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD) == (2, 8, 1)
    experiment.check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [0]}, r"the key 'sedes' is unknown; known are name, title, config, .*seeds"),
        (
            {"rows": [{"name": "plain", "seed": 1}]},
            r"rows\[0\]: the key 'seed' is unknown; known are name, .*seeds",
        ),
        ({"worlds": {"train": WORLD, "holdout": WORLD, "val": WORLD}}, "worlds: the key 'val' is unknown"),
        ({"worlds": {"train": WORLD}}, "worlds: the key 'holdout' is missing"),
        ({"worlds": {"train": WORLD, "holdout": {**WORLD, "arguments": "--seed 2"}}}, "the root a, but"),
        ({"worlds": {"train": {**WORLD, "arguments": "--out x"}}}, "have --out, which the runner gives"),
        ({"evaluation": "val"}, "evaluation is 'val', expected holdout or test"),
        ({"baseline": "teacher"}, "baseline is 'teacher', expected a row: plain"),
        ({"comparisons": [["plain"]]}, r"comparisons has \['plain'\], expected \[ROW, ROW\], two of plain"),
        ({"comparisons": [["plain", "teacher"]]}, "comparisons has .*'teacher'"),
        ({"comparisons": [["plain", "plain"]]}, "comparisons has .*'plain', 'plain'"),
        ({"comparisons": ["plain"]}, "comparisons has 'plain'"),
        ({"primary": []}, "primary is empty"),
        ({"primary": ["mAP", ["NDS"]]}, r"primary has \['NDS'\], expected the name of a metric"),
        ({"worlds": {"train": {**WORLD, "arguments": "--seed '2"}}}, 'arguments are "--seed .*No closing'),
        ({"primary": "mAP"}, "primary is 'mAP', expected a list"),
        ({"seeds": [0, 0]}, r"seeds are \[0, 0\], expected different integers"),
        ({"rows": [{"name": "a_0"}, {"name": "a_0"}]}, "two rows have the name 'a_0'"),
        ({"rows": [{"name": "a/b"}]}, "name is 'a/b', expected letters"),
        ({"rows": [{"name": "plain", "runs_of": "../a"}]}, r"runs_of is '\.\./a', expected the name of"),
        ({"overrides": {"SEED": 1}}, "overrides set SEED, which the runner sets"),
        ({"name": "other"}, "name is 'other', expected that of the file, 'tiny'"),
        ({"average_last": -1}, "average_last is -1"),
    ],
)
def test_wrong_keys_and_values_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_experiment(tiny.write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overrides": {"SOLVER.MAX_ITR": 4}}, "row plain: .*SOLVER.MAX_ITR"),
        ({"primary": ["mAP"]}, "row plain: metric 'mAP' is unknown"),
        ({"average_last": 9}, "average_last is 9, but SOLVER.MAX_ITER 4"),
        (
            {"overrides": {"DATASETS.TEST": ["val", "train"]}},
            r"DATASETS.TEST is \['val', 'train'\], expected one",
        ),
    ],
)
def test_wrong_configs_are_named_before_anything_runs(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    experiment = read_experiment(tiny.write(tmp_path, **changes))
    with pytest.raises(ValueError, match=message):
        experiment.check()


def test_missing_file_and_key_twice(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the experiment .*none\.yaml does not exist"):
        read_experiment(tmp_path / "none.yaml")
    path = tmp_path / "tiny.yaml"
    path.write_text("name: tiny\nname: tiny\n")
    with pytest.raises(ValueError, match="the key 'name' is there twice"):
        read_experiment(path)


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    experiment = read_experiment(tiny.write(folder, **changes))
    found: dict[str, Any] = experiment.settings(experiment.rows["plain"], 0)
    return found


def test_settings_are_what_a_result_depends_on(tmp_path: Path) -> None:
    plain = settings(tmp_path)
    assert plain["training"]["SOLVER.MAX_ITER"] == tiny.ITERATIONS and plain["training"]["SEED"] == 0
    assert not any(key.startswith(("DISTILL", "OUTPUT_DIR", "DATASETS.ROOT")) for key in plain["training"])
    common = tiny.content(tmp_path)["overrides"]
    longer = settings(tmp_path, overrides={**common, "SOLVER.MAX_ITER": 8})
    assert digest(longer["training"]) != digest(plain["training"])
    assert longer["evaluation"] == plain["evaluation"]
    without_effect = {**common, "DATALOADER.NUM_WORKERS": 2, "TEST.PRINT_PERIOD": 3}
    assert settings(tmp_path, overrides=without_effect) == plain
    default = {**common, "SOLVER.GAMMA": 0.1}  # as it is: a key that is added later changes nothing
    assert settings(tmp_path, overrides=default) == plain
    scored = settings(tmp_path, average_last=3)
    assert scored["training"] == plain["training"] and scored["evaluation"] != plain["evaluation"]


def test_settings_have_the_teachers_config(tmp_path: Path) -> None:
    def teacher(**changes: Any) -> dict[str, Any]:
        keys = {"DISTILL.TEACHER.WEIGHTS": "weights.pth", **changes}
        config = "configs/demo_mono/distill.yaml"
        found: dict[str, Any] = settings(tmp_path, config=config, overrides=keys)["training"]
        return found

    one = teacher()
    prefix = "DISTILL.TEACHER.RESOLVED.MODEL"
    assert one[f"{prefix}.RESNETS.DEPTH"] == 18 and one["DISTILL.TEACHER.WEIGHTS"] == "weights.pth"
    other = teacher(**{"DISTILL.TEACHER.OPTS": ["MODEL.RESNETS.DEPTH", 34]})
    assert {key for key in one | other if one.get(key) != other.get(key)} == {f"{prefix}.RESNETS.DEPTH"}
    # A cache of the teacher's outputs changes nothing but by its precision.
    half = {"DISTILL.TEACHER.CACHE_DTYPE": "float16"}
    assert teacher(**{"DISTILL.TEACHER.CACHE": "cache"}) == teacher(**half) == one
    assert teacher(**{"DISTILL.TEACHER.CACHE": "cache"}, **half) == one | half


def test_the_example_of_the_documentation_is_an_experiment(tmp_path: Path) -> None:
    ((_, text),) = blocks(ROOT / "docs" / "experiments.md", "yaml")
    (tmp_path / "example.yaml").write_text(text)
    experiment = read_experiment(tmp_path / "example.yaml")
    experiment.check()
    assert list(experiment.rows) == ["student", "F"] and experiment.average_last == 4


def test_rows_of_depth_guided_distillation_are_those_of_the_papers_tables_and_the_recommended() -> None:
    experiment = read_experiment(ROOT / "experiments" / "depth_guided.yaml")
    student, *rows = experiment.rows.values()
    assert not is_distillation(student.config_of(0)) and experiment.baseline == student.name
    found = {}
    for row in rows:
        distill = row.config_of(0).DISTILL
        node = distill.DEPTH_GUIDED
        prediction = (node.DISTANCE, node.DEPTH_ATTENTION, node.RHO)
        found[row.label.split(":")[0]] = (
            *distill.METHODS,
            distill.PERSPECTIVE_FEATURE.PERSPECTIVE,
            prediction,
        )
        assert distill.TEACHER.WEIGHTS == "assets/demo_mono_teacher.safetensors"
    feature, guided, full = "PerspectiveFeature", "DepthGuidedPrediction", ("l2", True, "exp")
    assert found == {
        "KL": (guided, True, ("kl", False, "off")),  # Table 1
        "L2": (guided, True, ("l2", False, "off")),
        "L2 + D": (guided, True, ("l2", True, "off")),
        "L2 + W (linear)": (guided, True, ("l2", False, "linear")),
        "L2 + W (exp)": (guided, True, ("l2", False, "exp")),
        "P": (guided, True, full),
        "F, M = 1 (FitNet)": (feature, False, full),  # Table 2
        "F": (feature, True, full),
        "F + P": (feature, guided, True, full),
        "head start": (True, full),  # not the paper's
        "recommended": ("FitNet", True, full),
    }


def test_rows_of_structured_distillation_differ_in_what_they_are_named_for() -> None:
    experiment = read_experiment(ROOT / "experiments" / "structured.yaml")
    plain, *rows = experiment.rows.values()
    assert not is_distillation(plain.config_of(0)) and experiment.baseline == plain.name
    attention = ["TemporalAttention", "SpatialAttention"]
    found = {}
    for row in rows:
        distill = row.config_of(0).DISTILL
        start = ["started"] if distill.INHERIT.INIT_PARAMS else []
        found[row.name] = ([*distill.METHODS, *start], distill.INHERIT.MODE, distill.FACTOR)
    assert found == {
        "init": ([], "init", 0.1),
        "inherit": ([], "freeze", 0.1),
        "inherit+attention": (attention, "freeze", 0.1),
        "inherit+response": (["BEVResponse"], "freeze", 0.1),
        "all": ([*attention, "BEVResponse"], "freeze", 0.1),
        "all-inherit": ([*attention, "BEVResponse"], "off", 0.1),
        "all_0.01": ([*attention, "BEVResponse"], "freeze", 0.01),
        "all_1": ([*attention, "BEVResponse"], "freeze", 1.0),
        "inherit+queries": ([], "freeze", 0.1),
        "head-start": (["started"], "off", 0.1),
        "FitNet": (["FitNet"], "off", 1.0),
        "PKD": (["PKD"], "off", 1.0),
        "recommended": (["FitNet", "started"], "off", 1.0),
    }


def test_the_student_of_structured_distillation_differs_from_its_teacher_in_the_backbone_alone() -> None:
    experiment = read_experiment(ROOT / "experiments" / "structured.yaml")
    student = experiment.rows["plain"].config_of(0)
    teacher = teacher_config(experiment.rows["all"].config_of(0))
    assert student.MODEL.BEVFORMER == teacher.MODEL.BEVFORMER
    assert student.INPUT == teacher.INPUT
    assert student.MODEL.RESNETS.STEM_OUT_CHANNELS < teacher.MODEL.RESNETS.STEM_OUT_CHANNELS


def test_shipped_experiments_are_complete() -> None:
    paths = sorted((ROOT / "experiments").glob("*.yaml"))
    assert paths
    for path in paths:
        experiment = read_experiment(path)
        experiment.check()
        assert yaml.safe_load(path.read_text())["name"] == experiment.name
        assert len(experiment.runs()) >= 4 * len(experiment.rows)


def test_a_row_may_have_the_runs_of_another_experiment(tmp_path: Path) -> None:
    other = read_experiment(tiny.write(tmp_path, rows=[{"name": "plain"}, {"name": "slow"}]))
    path = tiny.write(tmp_path, rows=[{"name": "plain", "runs_of": "other"}, {"name": "slow"}])
    experiment, results = read_experiment(path), tmp_path / "results"
    row = experiment.rows["plain"]
    assert result_path(results, row, 0) == results / "other" / "plain_0.json"
    assert experiment.settings(row, 0) == other.settings(other.rows["plain"], 0)
    assert finished(results, experiment) == {}
    for name in ("other/plain_0", "other/other_0", "tiny/slow_0"):
        write_result(results / f"{name}.json", {})
    assert set(finished(results, experiment)) == {("plain", 0), ("slow", 0)}
    write_result(results / "tiny" / "plain_0.json", {})
    with pytest.raises(ValueError, match=r"plain_0\.json is the result of no run of .*tiny\.yaml"):
        finished(results, experiment)
