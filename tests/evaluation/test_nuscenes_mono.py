import json
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nuscenes.eval.common.config import config_factory

from bevkd2.config import get_cfg
from bevkd2.data import build_test_loader, load_nuscenes
from bevkd2.data.nuscenes_mono import NuScenesMonoIndex
from bevkd2.engine.evaluator import build_evaluator
from bevkd2.evaluation import NuScenesMonoEvaluator
from bevkd2.evaluation import nuscenes_mono as evaluation_module
from bevkd2.evaluation.camera_merge import CameraDetections, MergeRule, merge_cameras
from bevkd2.nuscenes.layout import ATTRIBUTE_NAMES, CLASS_NAMES, MONO_CLASS_NAMES, NO_ATTRIBUTE
from bevkd2.structures import (
    CAMERA_NAMES,
    Boxes3D,
    CameraBoxes3D,
    camera_from_upright,
    pose_matrix,
    to_global,
)
from tests.data.nuscenes_fixture import VERSION

CLASSES = MONO_CLASS_NAMES
RULE = MergeRule(score_threshold=0.01, nms_threshold=0.05, max_per_sample=500)
RANGE = config_factory("detection_cvpr_2019").class_range


@pytest.fixture(scope="module")
def index(fixture_world):
    return NuScenesMonoIndex(load_nuscenes(fixture_world.root, VERSION, "both"), CLASSES)


def ground_truth(index, i, score=0.9):
    """Input and output of a model that detects all annotated objects of an image."""
    record = index.record(i)
    found = {
        "boxes": record.boxes,
        "scores": torch.full((len(record.labels),), score),
        "labels": record.labels,
        "attributes": record.attributes,
    }
    return {"image_id": record.image_id, **record.extra}, found


def evaluator(index, output_dir, cameras=CAMERA_NAMES):
    frames = index.frames
    return NuScenesMonoEvaluator(
        root=frames.root,
        version=frames.version,
        split=frames.split,
        output_dir=output_dir,
        class_names=index.class_names,
        cameras=cameras,
        rule=RULE,
    )


def feed(out, pairs, batch_size=1):
    for start in range(0, len(pairs), batch_size):
        inputs, outputs = zip(*pairs[start : start + batch_size], strict=True)
        out.process(inputs, outputs)


def all_ground_truth(index):
    return [ground_truth(index, i) for i in range(len(index))]


def score(index, output_dir, pairs=None, batch_size=1):
    out = evaluator(index, output_dir)
    out.reset()
    feed(out, all_ground_truth(index) if pairs is None else pairs, batch_size)
    return out.evaluate()["bbox"]


def found_by_class(output_dir):
    """Translations (x, y) per class in the results file, by class name."""
    results = json.loads((output_dir / "results_nusc.json").read_text())["results"]
    out = {}
    for boxes in results.values():
        for box in boxes:
            out.setdefault(box["detection_name"], []).append(box["translation"][:2])
    return out


def test_ground_truth_of_the_cameras_scores_one_on_the_real_frame(shared_dir, tmp_path):
    root = shared_dir / "real" / "nuscenes-one"
    index = NuScenesMonoIndex(load_nuscenes(root, "v1.0-one", "one", str(tmp_path / "cache")), CLASSES)
    scores = score(index, tmp_path)
    seen = {CLASSES[label] for i in range(6) for label in index.record(i).labels}
    for name in ("car", "truck", "barrier", "traffic_cone"):
        assert scores[f"AP_{name}"] == pytest.approx(1.0), name
    # Two of the ten pedestrians in range overlap by 0.085, more than the suppression lets pass. The official
    # AP counts the recall beyond 0.1.
    assert scores["AP_pedestrian"] == pytest.approx((0.9 - 0.1) / 0.9)
    errors = json.loads((tmp_path / "metrics_summary.json").read_text())["label_tp_errors"]
    for name in seen:
        if scores[f"AP_{name}"] == 0.0:
            continue  # beyond the range of its class
        # Centres and sizes are exact; headings lose the square of the tilt, 2.1 degrees at most.
        assert errors[name]["trans_err"] < 1e-4 and errors[name]["scale_err"] < 1e-4, name
        assert name == "traffic_cone" or errors[name]["orient_err"] < 0.003, name
        assert name in ("traffic_cone", "barrier") or errors[name]["attr_err"] == 0.0, name


def test_ground_truth_of_the_cameras_scores_one_in_the_fixture_world(index, tmp_path):
    scores = score(index, tmp_path)
    assert scores["AP_car"] == scores["AP_pedestrian"] == pytest.approx(1.0)
    errors = json.loads((tmp_path / "metrics_summary.json").read_text())["label_tp_errors"]["car"]
    assert errors["trans_err"] < 1e-3 and errors["orient_err"] < 1e-3 and errors["vel_err"] < 1e-3
    assert errors["attr_err"] == 0.0


def test_an_object_in_two_cameras_is_one_detection(index, tmp_path):
    tokens = set()
    for sample, found in all_ground_truth(index):
        tokens |= {(sample["sample_token"], int(label)) for label in found["labels"]}
    seen = sum(len(found["labels"]) for _, found in all_ground_truth(index))
    score(index, tmp_path)
    in_range = {name: len(boxes) for name, boxes in found_by_class(tmp_path).items()}
    assert seen > sum(in_range.values())
    assert in_range == {"car": 6, "pedestrian": 6}  # one of each near the ego in six frames


def test_order_and_batches_do_not_matter(index, tmp_path):
    pairs = all_ground_truth(index)
    reference = score(index, tmp_path / "a", pairs)
    random.Random(0).shuffle(pairs)
    shuffled = score(index, tmp_path / "b", pairs, batch_size=5)
    np.testing.assert_equal(shuffled, reference)
    results = [
        json.loads((tmp_path / name / "results_nusc.json").read_text())["results"] for name in ("a", "b")
    ]
    assert results[0] == results[1]


def test_ranks_may_share_a_key_frame(index, tmp_path, monkeypatch):
    parts = [evaluator(index, tmp_path) for _ in range(2)]
    for i, pair in enumerate(all_ground_truth(index)):
        feed(parts[i % 2], [pair])
    gathered = [part._detections for part in parts]
    monkeypatch.setattr(evaluation_module.comm, "gather", lambda data, dst: gathered)
    assert parts[0].evaluate()["bbox"]["AP_car"] == pytest.approx(1.0)
    monkeypatch.setattr(evaluation_module.comm, "is_main_process", lambda: False)
    assert parts[1].evaluate() is None


def test_classes_in_another_order(index, tmp_path):
    other = NuScenesMonoIndex(index.frames, sorted(CLASSES))
    np.testing.assert_equal(score(other, tmp_path / "a"), score(index, tmp_path / "b"))


def test_missing_cameras_and_samples_are_named(index, tmp_path):
    pairs = all_ground_truth(index)
    out = evaluator(index, tmp_path)
    feed(out, pairs[:9] + pairs[11:])  # without CAM_BACK and CAM_BACK_LEFT of the second sample
    with pytest.raises(
        ValueError, match=r"1 of 6 samples .*'s0f1' has CAM_BACK, CAM_BACK_LEFT not evaluated"
    ):
        out.evaluate()
    out.reset()
    feed(out, pairs[6:])
    with pytest.raises(
        ValueError, match=r"has 6 samples; 1 of them were not evaluated and 0 others .*'s0f0'"
    ):
        out.evaluate()
    out = evaluator(index, tmp_path, cameras=CAMERA_NAMES[1:])
    feed(out, pairs)
    with pytest.raises(ValueError, match=r"6 of 6 samples .* CAM_FRONT not in INPUT\.CAMERAS"):
        out.evaluate()


@pytest.mark.parametrize("column", ["boxes", "scores"])
def test_nan_is_named_with_its_image(index, tmp_path, column):
    i = next(i for i in range(len(index)) if len(index.record(i).labels))
    sample, found = ground_truth(index, i)
    values = found["boxes"].tensor if column == "boxes" else found["scores"]
    values.view(-1)[0] = math.nan
    with pytest.raises(ValueError, match=rf"detections of image '{sample['image_id']}' contain NaN"):
        evaluator(index, tmp_path).process([sample], [found])


def test_labels_beyond_the_classes_are_named(index, tmp_path):
    i = next(i for i in range(len(index)) if len(index.record(i).labels))
    sample, found = ground_truth(index, i)
    found["labels"][0] = 10
    with pytest.raises(ValueError, match=r"label 10, expected 0 to 9: .* DATASETS\.CLASSES"):
        evaluator(index, tmp_path).process([sample], [found])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["boxes"].tensor.select(1, 3).fill_(0), "have a box of .* 0, .* expected sizes"),
        (lambda found: found["labels"].fill_(-1), "have the label -1, expected 0 to 9"),
        (lambda found: found["attributes"].fill_(9), "have the attribute 9, expected 0 to 8"),
        (lambda found: found["attributes"].fill_(-1), "have the attribute -1, expected 0 to 8"),
    ],
)
def test_what_the_devkit_cannot_take_names_the_image(index, tmp_path, change, message):
    i = next(i for i in range(len(index)) if len(index.record(i).labels))
    sample, found = ground_truth(index, i)
    change(found)
    with pytest.raises(ValueError, match=f"image '{sample['image_id']}' {message}"):
        evaluator(index, tmp_path).process([sample], [found])


def test_without_attributes_and_velocities(index, tmp_path):
    """A head without these branches is scored, too: attributes by speed, which is zero."""
    pairs = all_ground_truth(index)
    for _, found in pairs:
        del found["attributes"]
        found["boxes"] = CameraBoxes3D(found["boxes"].tensor[:, :7])
    scores = score(index, tmp_path, pairs)
    assert scores["AP_car"] == pytest.approx(1.0)
    results = json.loads((tmp_path / "results_nusc.json").read_text())["results"]
    cars = [box for boxes in results.values() for box in boxes if box["detection_name"] == "car"]
    assert {car["attribute_name"] for car in cars} == {"vehicle.parked"}
    assert all(car["velocity"] == [0, 0] for car in cars)


def test_no_detections_score_zero(index, tmp_path):
    empty = {"boxes": CameraBoxes3D.empty(), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}
    pairs = [
        (sample, {**empty, "attributes": torch.zeros(0).long()}) for sample, _ in all_ground_truth(index)
    ]
    assert score(index, tmp_path, pairs)["mAP"] == 0.0


def test_from_config(fixture_world, index, tmp_path):
    cfg = get_cfg()
    cfg.DATASETS.FORMAT = "nuscenes_mono"
    cfg.DATASETS.ROOT, cfg.DATASETS.VERSION = str(fixture_world.root), VERSION
    out = build_evaluator(cfg, "both", tmp_path)
    feed(out, all_ground_truth(index))
    assert out.evaluate()["bbox"]["AP_pedestrian"] == pytest.approx(1.0)
    cfg.TEST.NUSCENES_MONO.MAX_PER_SAMPLE = 501
    with pytest.raises(ValueError, match=r"MAX_PER_SAMPLE is 501, expected 1 to 500"):
        build_evaluator(cfg, "both", tmp_path)
    cfg.TEST.NUSCENES_MONO.MAX_PER_SAMPLE = 1
    cfg.TEST.NUSCENES_MONO.NMS_THRESHOLD = 5.0
    with pytest.raises(ValueError, match=r"NMS_THRESHOLD is 5\.0"):
        build_evaluator(cfg, "both", tmp_path)
    cfg.TEST.NUSCENES_MONO.SCORE_THRESHOLD = 5.0
    with pytest.raises(ValueError, match=r"SCORE_THRESHOLD is 5\.0, expected a score"):
        build_evaluator(cfg, "both", tmp_path)


@pytest.mark.parametrize("image_scale", [[], [32, 18]])
def test_from_the_loader_to_the_score(fixture_world, tmp_path, image_scale):
    """Boxes in metres do not depend on the size that images are resized to."""
    cfg = get_cfg()
    cfg.DATASETS.FORMAT, cfg.DATASETS.CLASSES = "nuscenes_mono", ["pedestrian", "car"]
    cfg.DATASETS.ROOT, cfg.DATASETS.VERSION = str(fixture_world.root), VERSION
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.RESIZE_TEST = image_scale
    out = build_evaluator(cfg, "both", tmp_path)
    for batch in build_test_loader(cfg, "both"):
        found = [
            {name: sample[name] for name in ("boxes", "labels", "attributes")}
            | {"scores": torch.ones(len(sample["labels"]))}
            for sample in batch
        ]
        out.process(batch, found)
    scores = out.evaluate()["bbox"]
    assert scores["AP_car"] == scores["AP_pedestrian"] == pytest.approx(1.0)


# Merging, on cameras made by hand: the ego is at (600, 1600), its cameras point along +x and +y.
EGO = pose_matrix([600.0, 1600.0, 0.0], [1, 0, 0, 0])
AHEAD = EGO @ pose_matrix([1.5, 0, 1.5], [0.5, -0.5, 0.5, -0.5])
LEFT = EGO @ pose_matrix([0.0, 0.5, 1.6], [math.sqrt(0.5), -math.sqrt(0.5), 0, 0])


def seen(cam2global, rows, scores, labels, attributes=None):
    """Detections of a camera from rows x, y, yaw, vx, vy about the ego."""
    boxes = torch.tensor([[x, y, 0.8, 4.5, 1.9, 1.6, yaw, vx, vy] for x, y, yaw, vx, vy in rows]).double()
    relative = np.linalg.inv(EGO) @ cam2global
    return CameraDetections(
        camera_from_upright(Boxes3D(boxes.reshape(-1, 9)), relative),
        np.array(scores, dtype=float),
        np.array(labels, dtype=np.int64),
        None if attributes is None else np.array(attributes),
        cam2global,
        EGO,
    )


CAR, BUS, CONE = (CLASS_NAMES.index(name) for name in ("car", "bus", "traffic_cone"))


def test_the_detection_of_highest_score_keeps_all_its_columns():
    moving, parked = ATTRIBUTE_NAMES.index("vehicle.moving"), ATTRIBUTE_NAMES.index("vehicle.parked")
    ahead = seen(AHEAD, [[20, 20, 0.3, 5, 1], [20, 20, 0.3, 0, 0]], [0.4, 0.3], [CAR, BUS], [moving, parked])
    left = seen(LEFT, [[20.4, 20, 0.3, 4, 0]], [0.6], [CAR], [NO_ATTRIBUTE])
    merged = merge_cameras([ahead, left], RULE, RANGE)
    assert merged.labels.tolist() == [CAR, BUS] and merged.scores.tolist() == [0.6, 0.3]
    assert merged.attributes.tolist() == [NO_ATTRIBUTE, parked]
    boxes = to_global(merged.boxes, merged.lidar2global)
    np.testing.assert_allclose(boxes.translation, [[620.4, 1620, 0.8], [620, 1620, 0.8]], atol=1e-6)
    np.testing.assert_allclose(boxes.velocity, [[4, 0], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(
        boxes.rotation[0] * np.sign(boxes.rotation[0, 0]), [math.cos(0.15), 0, 0, math.sin(0.15)], atol=1e-6
    )


def test_overlap_is_that_of_turned_boxes():
    """Two cars side by side, diagonal: their axis-aligned extents overlap, they do not."""
    yaw = math.pi / 4
    side = [20 - 2 * math.sin(yaw), 20 + 2 * math.cos(yaw), yaw, 0, 0]
    ahead, left = seen(AHEAD, [[20, 20, yaw, 0, 0]], [0.5], [CAR]), seen(LEFT, [side], [0.4], [CAR])
    merged = merge_cameras([ahead, left], RULE, RANGE)
    assert len(merged.boxes) == 2 and merged.attributes is None


def test_cameras_of_which_some_have_attributes_are_an_error():
    row = [20, 20, 0, 0, 0]
    cameras = [seen(AHEAD, [row], [0.5], [CAR], [NO_ATTRIBUTE]), seen(LEFT, [row], [0.4], [CAR])]
    with pytest.raises(ValueError, match=r"1 of 2 cameras have attributes, expected all or none"):
        merge_cameras(cameras, RULE, RANGE)
    with pytest.raises(ValueError, match="expected the detections of one camera or more"):
        merge_cameras([], RULE, RANGE)


def test_range_is_cut_before_suppression():
    """A box beyond the range of its class does not count, and so takes no other away."""
    beyond, within = [30.2, 0, 0, 0, 0], [29.8, 0, 0, 0, 0]
    merged = merge_cameras([seen(AHEAD, [beyond, within], [0.9, 0.5], [CONE, CONE])], RULE, RANGE)
    assert merged.scores.tolist() == [0.5]


def test_low_scores_are_dropped_and_the_best_are_kept():
    rows = [[10 + 5 * i, 0, 0, 0, 0] for i in range(5)]
    camera = seen(AHEAD, rows, [0.3, 0.009, 0.5, 0.2, 0.01], [CAR] * 5)
    assert merge_cameras([camera], RULE, RANGE).scores.tolist() == [0.5, 0.3, 0.2, 0.01]
    assert merge_cameras([camera], MergeRule(0.01, 0.05, 2), RANGE).scores.tolist() == [0.5, 0.3]


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_order_of_cameras_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    cameras = [
        seen(pose, rng.uniform(-20, 20, (30, 5)).tolist(), rng.random(30), rng.integers(0, 3, 30))
        for pose in (AHEAD, LEFT, EGO @ AHEAD)
    ]
    one, other = merge_cameras(cameras, RULE, RANGE), merge_cameras(cameras[::-1], RULE, RANGE)
    assert one.scores.tolist() == other.scores.tolist() and one.labels.tolist() == other.labels.tolist()
    torch.testing.assert_close(one.boxes.tensor, other.boxes.tensor)
