"""Scoring on the test splits."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bevkd2.checkpoint import Checkpointer, StateDictMismatchError
from bevkd2.config import get_cfg
from bevkd2.d2 import build_model
from bevkd2.engine import check_datasets, evaluate, load_for_evaluation
from bevkd2.engine.evaluator import build_evaluator
from bevkd2.evaluation import KittiEvaluator, NuScenesEvaluator, NuScenesMonoEvaluator
from tests.data.kitti_fixture import VAL
from tests.data.nuscenes_fixture import VERSION
from tests.engine.toys import ToyEvaluator, build_toy_test_loader, flat, toy_cfg


def score(cfg: Any, **kwargs: Any) -> Any:
    return evaluate(
        cfg, build_model(cfg), build_loader=build_toy_test_loader, build_evaluator=ToyEvaluator, **kwargs
    )


def test_one_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        results = score(toy_cfg(tmp_path))
    assert results["toy"]["count"] == 6
    assert (tmp_path / "inference" / "scores.txt").is_file()
    assert "copypaste: Task: toy" in caplog.text and re.search(r"copypaste: [-\d.]+,6\.0000", caplog.text)
    assert "Total inference time" in caplog.text


def test_several_splits_are_kept_apart(tmp_path: Path) -> None:
    results = score(toy_cfg(tmp_path, "DATASETS.TEST", ("val", "night")), folder="inference/teacher")
    assert list(results) == ["val", "night"] and results["night"]["toy"]["count"] == 6
    assert all((tmp_path / "inference" / "teacher" / split / "scores.txt").is_file() for split in results)


@pytest.mark.parametrize("split", ["../../x", "/tmp/x"])
def test_results_stay_in_their_folder(tmp_path: Path, split: str) -> None:
    with pytest.raises(ValueError, match=f"names the split '{split}', which is a path out of the folder"):
        score(toy_cfg(tmp_path, "DATASETS.TEST", ("val", split)))


def test_model_is_left_in_its_mode(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path)
    model = build_model(cfg).train()
    evaluate(cfg, model, build_loader=build_toy_test_loader, build_evaluator=ToyEvaluator)
    assert model.training


def test_no_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty"):
        score(toy_cfg(tmp_path, "DATASETS.TEST", ()))


def test_weights_to_evaluate(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path)
    trained, model = build_model(cfg), build_model(cfg)
    Checkpointer(trained, str(tmp_path)).save("model_final")
    load_for_evaluation(cfg, model, resume=True)
    assert torch.equal(flat(trained), flat(model))
    assert f"OUTPUT_DIR: {tmp_path}" in (tmp_path / "inference" / "config.yaml").read_text()
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    model = build_model(cfg)
    load_for_evaluation(cfg, model, resume=False)
    assert torch.equal(flat(trained), flat(model))


@pytest.mark.parametrize("spoil", ["last_checkpoint", "model_0000009.pth"])
def test_the_checkpoint_to_evaluate_is_that_of_a_resumed_training(
    tmp_path: Path, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = toy_cfg(tmp_path)
    models = {
        name: build_model(cfg) for name in ("model_best", "model_0000004", "model_0000007", "model_0000009")
    }
    for iteration, (name, model) in zip((2, 4, 7, 9), models.items(), strict=True):
        Checkpointer(model, str(tmp_path)).save(name, iteration=iteration)
    (tmp_path / spoil).write_bytes(b"")
    load_for_evaluation(cfg, model := build_model(cfg), resume=True)
    expected = "model_0000009" if spoil == "last_checkpoint" else "model_0000007"
    assert torch.equal(flat(models[expected]), flat(model))
    assert f"Resuming from {tmp_path / expected}.pth instead" in caplog.text


def test_neither_weights_nor_checkpoint(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path)
    with pytest.raises(ValueError, match=r"--eval-only has no weights to evaluate: add MODEL\.WEIGHTS"):
        load_for_evaluation(cfg, build_model(cfg), resume=False)
    with pytest.raises(ValueError, match=r"has no checkpoint; train first"):
        load_for_evaluation(cfg, build_model(cfg), resume=True)


def test_weights_with_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path)
    Checkpointer(build_model(cfg), str(tmp_path)).save("ten")
    cfg.merge_from_list(["DATASETS.FORMAT", "kitti", "MODEL.WEIGHTS", str(tmp_path / "ten.pth")])
    with pytest.raises(
        StateDictMismatchError,
        match=r"ten\.pth does not fit ToyDetector: .*head\.bias \(10,\) instead of \(3,\)",
    ):
        load_for_evaluation(cfg, build_model(cfg), resume=False)


def test_allowance_does_not_hold_for_what_is_scored(tmp_path: Path) -> None:
    weights, cfg = tmp_path / "backbone.pth", toy_cfg(tmp_path)
    state = build_model(cfg).state_dict()
    torch.save({name: value for name, value in state.items() if not name.startswith("head.")}, weights)
    cfg.merge_from_list(["MODEL.WEIGHTS", str(weights), "MODEL.ALLOW_MISSING", ["head."]])
    with pytest.raises(StateDictMismatchError, match=r"2 keys missing from it: head\.bias, head\.weight"):
        load_for_evaluation(cfg, build_model(cfg), resume=False)


@pytest.mark.parametrize(
    ("form", "evaluator"),
    [("nuscenes", NuScenesEvaluator), ("nuscenes_mono", NuScenesMonoEvaluator), ("kitti", KittiEvaluator)],
)
def test_the_data_format_decides_the_evaluator(tmp_path: Path, form: str, evaluator: type) -> None:
    cfg = get_cfg()
    cfg.DATASETS.FORMAT = form
    assert type(build_evaluator(cfg, "val", tmp_path)) is evaluator
    cfg.DATASETS.FORMAT = "coco"
    with pytest.raises(ValueError, match=r"DATASETS\.FORMAT is 'coco', expected one of kitti, nuscenes"):
        build_evaluator(cfg, "val", tmp_path)


@pytest.mark.parametrize(
    ("form", "key", "value", "message"),
    [
        ("kitti", "INPUT.RESIZE_TEST", [100], r"RESIZE_TEST is \[100\]"),
        ("nuscenes_mono", "TEST.NUSCENES_MONO.SCORE_THRESHOLD", 2.0, r"SCORE_THRESHOLD is 2\.0"),
    ],
)
def test_settings_of_the_evaluation_are_checked_before_the_first_step(
    kitti_world: Path, fixture_world: Any, form: str, key: str, value: Any, message: str
) -> None:
    cfg = get_cfg()
    cfg.merge_from_list(["DATASETS.FORMAT", form, key, value, "DATASETS.VERSION", VERSION])
    cfg.DATASETS.ROOT = str(kitti_world if form == "kitti" else fixture_world.root)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (("train",), ("val",)) if form == "kitti" else (("both",),) * 2
    with pytest.raises(ValueError, match=message):
        check_datasets(cfg, training=True)


def test_a_bad_file_of_the_test_split_is_found_before_the_first_step(
    kitti_world: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(kitti_world, tmp_path / "world"))
    cfg = get_cfg()
    cfg.DATASETS.FORMAT, cfg.DATASETS.ROOT = "kitti", str(root)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("train",), ("val",)
    check_datasets(cfg, training=True)
    label = root / "training" / "label_2" / f"{VAL[-1]}.txt"
    label.write_text("Car 0.00 0 0.00 10 20 30 40 1.5 1.6 3.9 1.0 1.6 8.0\n")
    with pytest.raises(ValueError, match=rf"{VAL[-1]}\.txt, line 1: 14 columns"):
        check_datasets(cfg, training=True)
