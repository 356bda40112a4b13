"""Scores without a scene, or a block of images, are those that the evaluators give for the rest."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bevkd2.data import load_nuscenes
from bevkd2.data.format import DataFormat
from bevkd2.evaluation import NuScenesEvaluator
from bevkd2.evaluation.kitti_blocks import KittiBlocks, overlaps
from bevkd2.evaluation.nuscenes import named_scores
from bevkd2.evaluation.nuscenes_scenes import NuScenesScenes, match, scores_without
from bevkd2.kitti.ap import kitti_scores
from bevkd2.kitti.files import KittiFrames
from bevkd2.kitti.labels import read_labels, write_detections
from bevkd2.nuscenes.devkit import DetectionBox, DetectionEval, EvalBoxes, config_factory
from bevkd2.structures import Boxes3D
from tests.data.kitti_fixture import VAL
from tests.data.nuscenes_fixture import VERSION, FixtureWorld, yaw_quaternion

CONFIG = config_factory("detection_cvpr_2019")
SCENES = {f"sample{i}": i % 3 for i in range(7)}


def boxes(rng: np.random.Generator, token: str, count: int, *, found: bool) -> list[DetectionBox]:
    """Random boxes in a small area, of four classes; equal scores are frequent."""
    names = ["car", "pedestrian", "barrier", "traffic_cone"]
    made = []
    for _ in range(count):
        name = names[rng.integers(len(names))]
        attributes = {"car": ["vehicle.parked", "vehicle.moving"], "pedestrian": ["pedestrian.moving", ""]}
        made.append(
            DetectionBox(
                sample_token=token,
                translation=(*rng.uniform(-3, 3, 2), 0.0),
                size=tuple(rng.uniform(1, 3, 3)),
                rotation=tuple(yaw_quaternion(rng.uniform(-math.pi, math.pi))),
                velocity=tuple(rng.uniform(-1, 1, 2)),
                detection_name=name,
                detection_score=float(rng.integers(1, 9)) / 10 if found else -1.0,
                attribute_name=str(rng.choice(attributes.get(name, [""]))),
            )
        )
    return made


def devkit_scores(truths: EvalBoxes, found: EvalBoxes) -> dict[str, float]:
    """What the devkit says of these boxes."""
    evaluation = DetectionEval.__new__(DetectionEval)
    evaluation.gt_boxes, evaluation.pred_boxes = truths, found
    evaluation.cfg, evaluation.verbose = CONFIG, False
    metrics, _ = evaluation.evaluate()
    return named_scores(metrics, {box.detection_name for box in truths.all})


def of_tokens(made: dict[str, list[DetectionBox]], tokens: list[str]) -> EvalBoxes:
    chosen = EvalBoxes()
    for token in tokens:
        chosen.add_boxes(token, made[token])
    return chosen


@pytest.mark.parametrize("without", [None, 0, 1, 2])
def test_nuscenes_scores_without_a_scene_are_the_devkits_of_the_others(without: int | None) -> None:
    rng = np.random.default_rng(3)
    truths = {token: boxes(rng, token, 9, found=False) for token in SCENES}
    found = {token: boxes(rng, token, 24, found=True) for token in SCENES}
    matches = match(of_tokens(truths, list(SCENES)), of_tokens(found, list(SCENES)), SCENES, CONFIG)
    kept = [token for token, scene in SCENES.items() if scene != without]
    expected = devkit_scores(of_tokens(truths, kept), of_tokens(found, kept))
    assert 0.02 < expected["mAP"] < 0.4 and expected["mAOE"] > 0.1  # the four classes, of ten
    assert scores_without(matches, without, CONFIG) == pytest.approx(expected, nan_ok=True, abs=1e-12)


def detect(index, output: Path, noise: float) -> dict[str, float]:
    """Scores detections that are the annotations, those of the second scene moved."""
    evaluator = NuScenesEvaluator(root=index.root, version=VERSION, split=index.split, output_dir=output)
    for i in range(len(index)):
        frame, where = index[i], index.annotations(i)
        seen = torch.from_numpy(index.num_lidar_pts[where] > 0)
        found = index.boxes3d(i)[seen]
        found.tensor[:, 7:] = found.tensor[:, 7:].nan_to_num()
        found.tensor[:, 0] += noise if frame["sample_token"].startswith("s1") else 0.0
        sample = {key: frame[key] for key in ("sample_token", "lidar2global", "ego2global")}
        labels = torch.from_numpy(index.labels[where])[seen]
        scores = torch.linspace(1, 0.5, len(found))
        evaluator.process([sample], [{"boxes": found, "scores": scores, "labels": labels}])
    scores = evaluator.evaluate()
    assert scores is not None
    return scores["bbox"]


def test_nuscenes_scorer_reads_what_the_evaluator_wrote(tmp_path: Path) -> None:
    world = FixtureWorld(tmp_path / "world", scenes=2)
    index = load_nuscenes(world.root, VERSION, "both")
    scores = detect(index, tmp_path / "out", noise=3.0)
    scorer = NuScenesScenes(root=str(world.root), version=VERSION, split="both")
    found = scorer.score(tmp_path / "out", ["mAP", "NDS"], ["mATE", "AP_car"])
    assert found.scores == pytest.approx({n: scores[n] for n in ("mAP", "NDS", "mATE", "AP_car")}, abs=1e-12)
    assert found.units == ("scene-0001", "scene-0002") and set(found.without) == {"mAP", "NDS"}
    without_first, without_second = found.without["mAP"]
    # Without the second scene both classes are perfect; without the first they are found at 4 m only.
    assert without_second == pytest.approx(0.2, abs=1e-6) and without_first == pytest.approx(0.05, abs=1e-6)
    with pytest.raises(ValueError, match=r"metric 'mAp' is unknown; nuScenes' are mAP, NDS, mATE"):
        scorer.check(["mAp"])


def test_nuscenes_without_any_detection(tmp_path: Path) -> None:
    world = FixtureWorld(tmp_path / "world", scenes=2)
    index = load_nuscenes(world.root, VERSION, "both")
    evaluator = NuScenesEvaluator(root=index.root, version=VERSION, split="both", output_dir=tmp_path / "out")
    nothing = {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    for i in range(len(index)):
        sample = {key: index[i][key] for key in ("sample_token", "lidar2global", "ego2global")}
        evaluator.process([sample], [{"boxes": Boxes3D.empty(), **nothing}])
    evaluator.evaluate()
    scorer = NuScenesScenes(root=str(world.root), version=VERSION, split="both")
    found = scorer.score(tmp_path / "out", ["mAP"], ["mAOE"])
    assert found.scores == {"mAP": 0.0, "mAOE": 1.0} and found.without == {"mAP": [0.0, 0.0]}


def test_kitti_scores_at_any_iou_and_without_an_image(kitti_world: Path, tmp_path: Path) -> None:
    labels, folder = kitti_world / "training" / "label_2", tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in VAL:
        truth = read_labels(labels / f"{name}.txt")
        found = truth[truth.types != "DontCare"]
        found.location[:, 0] += rng.uniform(0, 0.6, len(found))
        scored = dataclasses.replace(found, scores=rng.uniform(0.1, 1, len(found)))
        write_detections(folder / f"{name}.txt", scored)
    metrics = ["Car_3D_moderate_R40@0.5:0.75", "Car_BEV_easy_R40"]
    plain = ["Car_3D_moderate_R40@0.5", "Pedestrian_3D_hard_R40"]
    result = KittiBlocks(root=kitti_world, split="val").score(tmp_path, metrics, plain)
    assert len(result.units) == len(VAL) and set(result.without) == set(metrics)

    def at(overlap: float, key: str, names: list[str] = VAL) -> float:
        frames = KittiFrames(tuple(names), labels, folder, 0).read()
        least = dict.fromkeys(("car", "pedestrian", "cyclist"), (overlap,) * 3)
        return kitti_scores(*frames, min_overlaps=least).ap_r40().get(key, 0.0)

    steps = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
    assert result.scores[metrics[0]] == pytest.approx(np.mean([at(s, "car/3d/moderate") for s in steps]))
    assert result.scores[metrics[1]] == pytest.approx(at(0.7, "car/bev/easy"))
    assert result.scores[plain[0]] == pytest.approx(at(0.5, "car/3d/moderate"))
    assert result.scores[plain[1]] == pytest.approx(at(0.5, "pedestrian/3d/hard"))
    assert result.without[metrics[1]][1] == pytest.approx(at(0.7, "car/bev/easy", [VAL[0], VAL[2]]))


def test_kitti_metrics_are_read_strictly() -> None:
    assert overlaps("Cyclist_BEV_hard_R40") == ("cyclist/bev/hard", [0.5])
    assert overlaps("Car_2D_easy_R40@0.6:0.7") == ("car/bbox/easy", [0.6, 0.65, 0.7])
    with pytest.raises(
        ValueError, match=r"'Car_3D_moderate' is unknown; expected such as Car_3D_moderate_R40"
    ):
        overlaps("Car_3D_moderate")
    for ious in ("0.7:0.5", "0.5:0.72", "0.0"):
        with pytest.raises(ValueError, match=f"the IoUs are {ious.split(':')[0]} to .*whole number of steps"):
            overlaps(f"Car_3D_moderate_R40@{ious}")


def test_a_format_without_a_scorer_says_so() -> None:
    class Mine:
        name = "mine"

    with pytest.raises(ValueError, match=r"'mine' cannot score a part of a split.*Mine\.left_out_scorer"):
        DataFormat.left_out_scorer(Mine(), None, "val")  # type: ignore[arg-type]


def test_a_results_file_that_the_devkit_refuses_is_named(tmp_path: Path) -> None:
    world = FixtureWorld(tmp_path, scenes=1, frames=2)
    scorer = NuScenesScenes(root=str(world.root), version=VERSION, split="both")
    tokens = [row["token"] for row in world.tables["sample"]]
    box = {
        **{"translation": [0.0, 0.0, 0.0], "size": [1.0, 1.0, 1.0], "rotation": [1.0, 0.0, 0.0, 0.0]},
        **{"velocity": [0.0, 0.0], "detection_name": "car", "detection_score": 0.5, "attribute_name": ""},
    }
    rows = {token: [{**box, "sample_token": token}] for token in tokens}
    path = tmp_path / "results_nusc.json"
    whole = json.dumps({"meta": {}, "results": rows})
    path.write_text(whole)
    assert scorer.score(tmp_path, ["mAP"]).scores["mAP"] == 0
    for text, message in (
        ("\ufeff" + whole, "begins with a byte-order mark"),
        (json.dumps({"results": rows}), "meta is None, expected an object"),
        (json.dumps({"meta": {}, "results": {tokens[0]: []}}), "has 1 samples, the split 'both' 2"),
        (json.dumps({"meta": {}, "results": {**rows, "other": []}}), "example in 'other'"),
        (
            json.dumps({"meta": {}, "results": {**rows, tokens[0]: rows[tokens[0]] * 501}}),
            f"sample '{tokens[0]}': 501 detections, expected 500",
        ),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"results_nusc\.json.*{message}"):
            scorer.score(tmp_path, ["mAP"])
