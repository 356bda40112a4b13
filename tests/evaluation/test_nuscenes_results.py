import dataclasses
import json

import numpy as np
import pytest
import torch
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.constants import ATTRIBUTE_NAMES as DEVKIT_ATTRIBUTES
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.utils import detection_name_to_rel_attributes

from bevkd2.evaluation.nuscenes_results import (
    SampleDetections,
    attribute_of,
    predicted_attribute,
    sample_results,
    write_results,
)
from bevkd2.nuscenes.layout import ATTRIBUTE_NAMES, CLASS_NAMES, NO_ATTRIBUTE
from bevkd2.structures import Boxes3D, pose_matrix

RANGE = config_factory("detection_cvpr_2019").class_range


IDENTITY = np.eye(4)


def detections(rows, labels=None, scores=None, ego=IDENTITY, lidar2global=IDENTITY) -> SampleDetections:
    boxes = Boxes3D(torch.tensor(rows, dtype=torch.float32).reshape(-1, 9))
    n = len(boxes)
    return SampleDetections(
        boxes,
        np.linspace(1, 0.1, n) if scores is None else np.array(scores, dtype=float),
        np.zeros(n, dtype=np.int64) if labels is None else np.array(labels),
        lidar2global,
        ego,
    )


def row(x=0.0, y=0.0, speed=0.0):
    return [x, y, 0.0, 4.0, 2.0, 1.5, 0.3, speed, 0.0]


@pytest.mark.parametrize("name", CLASS_NAMES)
@pytest.mark.parametrize("speed", [0.0, 0.19, 0.21, 9.0])
def test_attributes_are_legal_for_their_class(name, speed):
    legal = detection_name_to_rel_attributes(name) or [""]
    assert attribute_of(name, speed) in legal


def test_attribute_rule():
    assert attribute_of("car", 0.21) == "vehicle.moving" and attribute_of("car", 0.2) == "vehicle.parked"
    assert attribute_of("bus", 0.0) == "vehicle.stopped"
    assert attribute_of("bicycle", 1.0) == "cycle.with_rider"
    assert attribute_of("motorcycle", 0.0) == "cycle.without_rider"
    assert attribute_of("pedestrian", 1.0) == "pedestrian.moving"
    assert attribute_of("pedestrian", 0.0) == "pedestrian.standing"


def test_attribute_names_are_the_devkits():
    assert sorted(ATTRIBUTE_NAMES) == sorted(DEVKIT_ATTRIBUTES) and NO_ATTRIBUTE == 8


@pytest.mark.parametrize("name", CLASS_NAMES)
@pytest.mark.parametrize("attribute", range(9))
def test_a_predicted_attribute_is_kept_if_the_class_may_have_it(name, attribute):
    legal = detection_name_to_rel_attributes(name) or [""]
    given = predicted_attribute(name, attribute)
    if attribute != NO_ATTRIBUTE and ATTRIBUTE_NAMES[attribute] in legal:
        assert given == ATTRIBUTE_NAMES[attribute]
    else:
        assert given in legal and given == predicted_attribute(name, NO_ATTRIBUTE)


def test_predicted_attributes_are_written_at_any_speed():
    car, cone = CLASS_NAMES.index("car"), CLASS_NAMES.index("traffic_cone")
    stopped, rider = ATTRIBUTE_NAMES.index("vehicle.stopped"), ATTRIBUTE_NAMES.index("cycle.with_rider")
    found = detections([row(1, speed=9), row(2, speed=9), row(3)], labels=[car, car, cone])
    found = dataclasses.replace(found, attributes=np.array([stopped, rider, stopped]))
    names = [r["attribute_name"] for r in sample_results("s", found, RANGE)]
    assert names == ["vehicle.stopped", "vehicle.parked", ""]


def test_boxes_beyond_the_class_range_are_dropped():
    cone, car = CLASS_NAMES.index("traffic_cone"), CLASS_NAMES.index("car")
    found = detections([row(31), row(29), row(49), row(51)], labels=[cone, cone, car, car])
    kept = [(r["detection_name"], r["translation"][0]) for r in sample_results("s", found, RANGE)]
    assert kept == [("traffic_cone", 29), ("car", 49)]
    # The range is about the ego, not about the lidar or the global origin.
    ego = pose_matrix([20.0, 0, 0], [1, 0, 0, 0])
    assert len(sample_results("s", detections([row(51), row(-31)], ego=ego), RANGE)) == 1


def test_global_frame():
    lidar2global = pose_matrix(
        [100.0, 200, 0], [np.sqrt(0.5), 0, 0, np.sqrt(0.5)]
    )  # a quarter turn to the left
    found = detections([row(10, 0, speed=5)], lidar2global=lidar2global, ego=lidar2global)
    (result,) = sample_results("s", found, RANGE)
    np.testing.assert_allclose(result["translation"], [100, 210, 0], atol=1e-5)
    np.testing.assert_allclose(result["velocity"], [0, 5], atol=1e-5)
    np.testing.assert_allclose(result["size"], [2, 4, 1.5])


def test_best_500_are_kept():
    rng = np.random.default_rng(0)
    scores = rng.random(700)
    results = sample_results("s", detections([row()] * 700, scores=scores), RANGE)
    kept = [r["detection_score"] for r in results]
    assert kept == sorted(scores.tolist(), reverse=True)[:500]


@pytest.mark.parametrize("where", ["box", "score"])
def test_nan_is_named(where):
    found = detections(
        [row(float("nan") if where == "box" else 0)], scores=[np.nan if where == "score" else 1]
    )
    with pytest.raises(ValueError, match="sample 'the-token' contain NaN"):
        sample_results("the-token", found, RANGE)


def test_file_is_what_the_devkit_reads(tmp_path):
    path = tmp_path / "results.json"
    assert write_results(path, {"a": detections([row(), row(3)]), "b": detections([])}, RANGE) == 2
    content = json.loads(path.read_text())
    assert content["meta"]["use_camera"] is True and set(content["results"]) == {"a", "b"}
    assert content["results"]["b"] == []
    box = DetectionBox.deserialize(content["results"]["a"][0])
    assert box.detection_name == "car" and box.sample_token == "a"
