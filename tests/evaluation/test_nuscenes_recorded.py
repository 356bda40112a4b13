"""The nuScenes score of one fixed set of detections, on every version of Python and numpy.

nuscenes-devkit requires numpy < 2; from Python 3.13 on it runs on numpy 2 all the same. The numbers below
were recorded on numpy 1.26 (Python 3.11).
"""

import json
import random

import numpy as np
import pytest
import torch

from bevkd2.data import load_nuscenes
from bevkd2.evaluation.nuscenes import NuScenesScorer
from bevkd2.evaluation.nuscenes_results import SampleDetections
from bevkd2.nuscenes import CLASS_NAMES
from bevkd2.structures import Boxes3D
from tests.data.nuscenes_fixture import VERSION, FixtureWorld

RECORDED = {
    **dict.fromkeys((f"AP_{name}" for name in CLASS_NAMES), 0.0),
    "AP_car": 0.3403531766544805,
    "AP_barrier": 0.32319788698956126,
    "AP_pedestrian": 0.3864884751468538,
    "mAP": 0.10500395387908956,
    "mAP_present": 0.3500131795969652,
    "NDS": 0.13219953711707882,
    "mATE": 0.9645414359103623,
    "mASE": 0.7889446489690993,
    "mAOE": 0.7524838310018122,
    "mAVE": 0.843491862178938,
    "mAAE": 0.8535626201644478,
}
ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
RECORDED_ERRORS = {
    "car": (0.7969603291547889, 0.3055497704522967, 0.2676643059007116, 0.3796333914361737, 0.0),
    "pedestrian": (
        0.8875079894759885,
        0.30261908610052074,
        0.23549223344070647,
        0.3683015059953308,
        0.8285009613155829,
    ),
    "barrier": (0.9609460404728466, 0.281277633138176, 0.2691979396748907, float("nan"), float("nan")),
}
# Every score is a mean of at most a few thousand float64 numbers of size 1, summed in any order.
BOUND = 1e-11


def noisy_detections(index, i: int, rng: random.Random) -> SampleDetections:
    """Returns displaced boxes of some annotations of a frame, and as many false boxes."""
    frame, where = index[i], index.annotations(i)
    boxes = index.boxes3d(i).tensor.double().nan_to_num()  # a velocity that the tables do not give is NaN
    rows, scores, labels = [], [], []
    for box, label in zip(boxes.tolist(), index.labels[where].tolist(), strict=True):
        if rng.random() < 0.8:
            sizes = [size * rng.uniform(0.8, 1.25) for size in box[3:6]]
            position = [value + rng.uniform(-1.2, 1.2) for value in box[:3]]
            motion = [value + rng.uniform(-0.5, 0.5) for value in box[6:]]
            rows.append([*position, *sizes, *motion])
            scores.append(rng.uniform(0.3, 1.0))
            labels.append(label)
        rows.append(
            [rng.uniform(-30, 30), rng.uniform(-30, 30), 0.0, 4.0, 2.0, 1.5, rng.uniform(-3, 3), 0.0, 0.0]
        )
        scores.append(rng.uniform(0.0, 0.6))
        labels.append(label)
    return SampleDetections(
        boxes=Boxes3D(torch.tensor(rows, dtype=torch.float64)),
        scores=np.array(scores),
        labels=np.array(labels),
        lidar2global=frame["lidar2global"],
        ego2global=frame["ego2global"],
    )


def test_scores_equal_those_recorded_on_numpy_1(tmp_path):
    world = FixtureWorld(tmp_path / "world", scenes=3, frames=8)
    for record in world.tables["sample_annotation"]:
        record["num_lidar_pts"] = max(record["num_lidar_pts"], 1)
    world.write()
    index = load_nuscenes(world.root, VERSION, "both")
    rng = random.Random(0)
    detections = {index[i]["sample_token"]: noisy_detections(index, i, rng) for i in range(len(index))}
    scorer = NuScenesScorer(root=world.root, version=VERSION, split="both", output_dir=tmp_path / "out")

    scores = scorer.score(detections)["bbox"]

    errors = json.loads((tmp_path / "out" / "metrics_summary.json").read_text())["label_tp_errors"]
    of_present = {
        f"{name}_present": np.nanmean(column)
        for name, column in zip(
            ("mATE", "mASE", "mAOE", "mAVE", "mAAE"), zip(*RECORDED_ERRORS.values(), strict=True), strict=True
        )
    }
    assert scores == pytest.approx(RECORDED | of_present, rel=0, abs=BOUND)
    for name, expected in RECORDED_ERRORS.items():
        found = [errors[name][error] for error in ERRORS]
        assert found == pytest.approx(expected, rel=0, abs=BOUND, nan_ok=True), name
