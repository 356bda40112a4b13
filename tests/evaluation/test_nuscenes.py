import json
import logging
import math
import time

import numpy as np
import pytest
import torch

from bevkd2.config import get_cfg
from bevkd2.data import load_nuscenes
from bevkd2.engine.evaluator import build_evaluator
from bevkd2.evaluation import NuScenesEvaluator
from bevkd2.evaluation import nuscenes as evaluation_module
from bevkd2.nuscenes.layout import CLASS_NAMES
from bevkd2.structures import Boxes3D
from tests.data.nuscenes_fixture import VERSION, FixtureWorld


def ground_truth(index, i, noise=0.0):
    """Inputs and outputs of a model that detects all annotated objects."""
    frame = index[i]
    where = index.annotations(i)
    seen = torch.from_numpy(
        index.num_lidar_pts[where] + index.num_radar_pts[where] > 0
    )  # others do not count
    boxes = index.boxes3d(i)[seen]
    boxes.tensor[:, 7:] = boxes.tensor[:, 7:].nan_to_num()
    boxes.tensor[:, 0] += noise
    labels = torch.from_numpy(index.labels[where])[seen]
    sample = {key: frame[key] for key in ("sample_token", "lidar2global", "ego2global")}
    return [sample], [{"boxes": boxes, "scores": torch.linspace(1, 0.5, len(boxes)), "labels": labels}]


def evaluator(root, version, split, output_dir):
    return NuScenesEvaluator(root=root, version=version, split=split, output_dir=output_dir)


def score(index, output_dir, noise=0.0):
    out = evaluator(index.root, index.version, index.split, output_dir)
    out.reset()
    for i in range(len(index)):
        out.process(*ground_truth(index, i, noise))
    return out.evaluate()["bbox"]


def test_ground_truth_scores_one_on_the_real_frame(shared_dir, tmp_path):
    index = load_nuscenes(shared_dir / "real" / "nuscenes-one", "v1.0-one", "one", str(tmp_path / "cache"))
    started = time.process_time()
    scores = score(index, tmp_path)
    assert time.process_time() - started < 20
    # Classes that have annotations with points and in range; the devkit gives the others zero.
    where = index.num_lidar_pts + index.num_radar_pts > 0
    limits = evaluation_module.config_factory("detection_cvpr_2019").class_range
    present = set()
    for box, label in zip(index.boxes[where], index.labels[where], strict=True):
        position = index.lidar2global[0, :3, :3] @ box[:3] + index.lidar2global[0, :3, 3]
        distance = np.linalg.norm((position - index.ego2global[0, :3, 3])[:2])
        if distance < limits[CLASS_NAMES[label]]:
            present.add(CLASS_NAMES[label])
    assert len(present) >= 3
    for name in CLASS_NAMES:
        expected = 1.0 if name in present else 0.0
        assert scores[f"AP_{name}"] == pytest.approx(expected, abs=0.02), name
    assert scores["mAP"] == pytest.approx(len(present) / 10, abs=0.02)
    assert scores["mAP_present"] == pytest.approx(1.0, abs=0.02)
    errors = {"mATE", "mASE", "mAOE", "mAVE", "mAAE"}
    for error in ("mATE", "mASE", "mAOE"):  # a single frame has no velocities; an absent class counts as 1
        assert scores[f"{error}_present"] < 1e-3 < scores[error], error
    means = {"mAP", "mAP_present", "NDS"} | errors | {f"{error}_present" for error in errors}
    assert set(scores) == means | {f"AP_{name}" for name in CLASS_NAMES}


def test_scores_on_a_custom_split_equal_the_devkits_own(fixture_world, tmp_path, caplog):
    index = load_nuscenes(fixture_world.root, VERSION, "both")
    with caplog.at_level(logging.INFO, logger="bevkd2.evaluation"):
        scores = score(index, tmp_path)
    assert scores["AP_car"] == pytest.approx(1.0) and scores["AP_pedestrian"] == pytest.approx(1.0)
    assert scores["AP_barrier"] == 0.0  # it has no points
    summary = json.loads((tmp_path / "metrics_summary.json").read_text())
    assert scores["NDS"] == summary["nd_score"] and scores["mAP"] == summary["mean_ap"]
    errors = summary["label_tp_errors"]["car"]
    assert errors["trans_err"] < 1e-3 and errors["orient_err"] < 1e-3 and errors["vel_err"] < 1e-3
    assert errors["attr_err"] == 0.0  # the car that moves in the tables moves in its velocity
    assert scores["mATE"] == pytest.approx(
        np.mean([summary["label_tp_errors"][n]["trans_err"] for n in CLASS_NAMES])
    )
    assert "AVE (m/s)" in caplog.text and "traffic_cone" in caplog.text


def test_true_positive_errors_are_measured(fixture_world, tmp_path):
    index = load_nuscenes(fixture_world.root, VERSION, "both")
    scores = score(index, tmp_path, noise=0.7)
    assert scores["AP_car"] == pytest.approx(
        0.75, abs=0.01
    )  # lost at the threshold of 0.5 m, found at 1, 2, 4 m
    summary = json.loads((tmp_path / "metrics_summary.json").read_text())
    assert summary["label_tp_errors"]["car"]["trans_err"] == pytest.approx(0.7, abs=0.01)
    curves = json.loads((tmp_path / "metrics_details.json").read_text())
    assert set(curves) == {f"{name}:{d}" for name in CLASS_NAMES for d in (0.5, 1.0, 2.0, 4.0)}
    for distance, ap in summary["label_aps"]["car"].items():  # the devkit's rule: recall and precision > 0.1
        above = np.maximum(np.array(curves[f"car:{distance}"]["precision"])[11:] - 0.1, 0) / 0.9
        assert above.mean() == pytest.approx(ap, abs=1e-6)


def test_no_detections_score_zero(fixture_world, tmp_path, caplog):
    index = load_nuscenes(fixture_world.root, VERSION, "first")
    out = evaluator(index.root, VERSION, "first", tmp_path)
    for i in range(len(index)):
        sample, _ = ground_truth(index, i)
        nothing = {
            "boxes": Boxes3D.empty(),
            "scores": torch.zeros(0),
            "labels": torch.zeros(0, dtype=torch.int64),
        }
        out.process(sample, [nothing])
    scores = out.evaluate()["bbox"]
    assert scores["mAP"] == scores["NDS"] == 0.0
    assert [scores[name] for name in ("mATE", "mASE", "mAOE", "mAVE", "mAAE")] == [1.0] * 5
    assert "no detections" in caplog.text
    curves = json.loads((tmp_path / "metrics_details.json").read_text())
    assert len(curves) == 4 * len(CLASS_NAMES) and not any(max(c["precision"]) for c in curves.values())


def test_no_annotations_score_zero(tmp_path, caplog):
    world = FixtureWorld(tmp_path / "world", scenes=1, frames=1)
    index = load_nuscenes(world.root, VERSION, "first")
    sample, found = ground_truth(index, 0)
    for record in world.tables["instance"]:
        record["category_token"] = "cat-animal"
    world.write()
    out = evaluator(world.root, VERSION, "first", tmp_path / "out")
    out.process(sample, found)
    assert out.evaluate()["bbox"]["mAP"] == 0.0
    assert "no annotations" in caplog.text


def test_incomplete_split_is_named(fixture_world, tmp_path):
    index = load_nuscenes(fixture_world.root, VERSION, "both")
    out = evaluator(index.root, VERSION, "both", tmp_path)
    for i in range(5):
        out.process(*ground_truth(index, i))
    with pytest.raises(
        ValueError, match=r"has 6 samples; 1 of them were not evaluated and 0 others .*'s1f2'"
    ):
        out.evaluate()


def test_reset_clears_detections(fixture_world, tmp_path):
    index = load_nuscenes(fixture_world.root, VERSION, "both")
    out = evaluator(index.root, VERSION, "first", tmp_path)
    out.process(*ground_truth(index, 5))
    out.reset()
    for i in range(3):
        out.process(*ground_truth(index, i))
    assert out.evaluate()["bbox"]["AP_car"] == pytest.approx(1.0)


def test_ranks_are_gathered(fixture_world, tmp_path, monkeypatch):
    """Each process holds some samples; the main one scores all, the others say nothing."""
    index = load_nuscenes(fixture_world.root, VERSION, "both")
    parts = []
    for rank in range(2):
        out = evaluator(index.root, VERSION, "both", tmp_path)
        for i in range(3 * rank, 3 * rank + 3):
            out.process(*ground_truth(index, i))
        parts.append(out)
    gathered = [part._detections for part in parts]
    monkeypatch.setattr(evaluation_module.comm, "gather", lambda data, dst: gathered)
    assert parts[0].evaluate()["bbox"]["AP_car"] == pytest.approx(1.0)
    monkeypatch.setattr(evaluation_module.comm, "is_main_process", lambda: False)
    assert parts[1].evaluate() is None


def test_tables_are_read_once_until_they_change(tmp_path, monkeypatch):
    world = FixtureWorld(tmp_path / "world", scenes=1, frames=1)
    index = load_nuscenes(world.root, VERSION, "first")
    reads = []
    original = evaluation_module.NuScenesTables
    monkeypatch.setattr(
        evaluation_module, "NuScenesTables", lambda *args: reads.append(args) or original(*args)
    )
    for _ in range(2):
        score(index, tmp_path / "out")
    assert len(reads) == 1
    time.sleep(0.01)
    world.write()
    score(index, tmp_path / "out")
    assert len(reads) == 2


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_is_no_class_names_the_sample(fixture_world, tmp_path, label):
    index = load_nuscenes(fixture_world.root, VERSION, "both")
    samples, found = ground_truth(index, 0)
    found[0]["labels"][0] = label
    with pytest.raises(ValueError, match=rf"sample 's0f0' have the label {label}, expected 0 to 9"):
        evaluator(index.root, index.version, index.split, tmp_path).process(samples, found)


@pytest.mark.parametrize("size", [0.0, -0.5])
def test_a_size_that_is_not_above_zero_names_the_sample(fixture_world, tmp_path, size):
    index = load_nuscenes(fixture_world.root, VERSION, "both")
    samples, found = ground_truth(index, 0)
    found[0]["boxes"].tensor[1, 5] = size
    with pytest.raises(ValueError, match=rf"sample 's0f0' have a box .*, {size:g} m, expected sizes above 0"):
        evaluator(index.root, index.version, index.split, tmp_path).process(samples, found)


def test_from_config_and_quiet(fixture_world, tmp_path, capfd):
    cfg = get_cfg()
    cfg.DATASETS.ROOT, cfg.DATASETS.VERSION = str(fixture_world.root), VERSION
    index = load_nuscenes(fixture_world.root, VERSION, "first")
    out = build_evaluator(cfg, "first", tmp_path)
    for i in range(3):
        out.process(*ground_truth(index, i))
    scores = out.evaluate()["bbox"]
    assert math.isfinite(scores["NDS"])
    captured = capfd.readouterr()
    assert captured.out == "" and "%|" not in captured.err
