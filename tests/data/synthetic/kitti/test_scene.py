import collections

import numpy as np
import pytest
import torch

from bevkd2.data.synthetic import KittiWorldConfig
from bevkd2.data.synthetic.kitti.calibration import CAMERA_HEIGHT
from bevkd2.data.synthetic.kitti.scene import TYPES, make_frame
from bevkd2.ops.box3d import rotated_iou
from bevkd2.structures import CameraBoxes3D

CONFIG = KittiWorldConfig.preset("hard", seed=4)


@pytest.fixture(scope="module")
def frames():
    return [make_frame(CONFIG, i) for i in range(60)]


def test_a_frame_depends_on_seed_and_index_alone():
    first, again, other = make_frame(CONFIG, 2), make_frame(CONFIG, 2), make_frame(CONFIG, 3)
    np.testing.assert_array_equal(first.boxes(), again.boxes())
    assert first.boxes().shape != other.boxes().shape or (first.boxes() != other.boxes()).any()


def test_boxes_stand_on_the_ground_and_do_not_touch(frames):
    for frame in frames:
        boxes = CameraBoxes3D(torch.from_numpy(frame.boxes()))
        np.testing.assert_allclose(boxes.bottom_center[:, 1], CAMERA_HEIGHT, rtol=1e-12)
        overlap = rotated_iou(boxes.bev(), boxes.bev())
        overlap.fill_diagonal_(0.0)
        assert overlap.max() == 0
        assert boxes.corners()[..., 2].min() >= 1.5 - 1e-9


def test_the_camera_frame_agrees_with_the_global_one(frames):
    """The ego heads along z of the camera: an object's heading there is the global one, turned."""
    for frame in frames[:5]:
        path = frame.scene.road.path
        for item, box in zip(frame.scene.objects, frame.boxes(), strict=True):
            ahead = np.array([np.cos(path.heading), np.sin(path.heading)])
            right = np.array([np.sin(path.heading), -np.cos(path.heading)])
            np.testing.assert_allclose(path.origin + box[2] * ahead + box[0] * right, item.position)
            heading = np.cos(box[6]) * right - np.sin(box[6]) * ahead
            np.testing.assert_allclose(heading, [np.cos(item.yaw), np.sin(item.yaw)], atol=1e-9)
            assert -np.pi <= box[6] < np.pi


def test_most_cars_go_along_the_road(frames):
    turns = [
        abs(np.sin(item.yaw - frame.scene.road.path.heading))
        for frame in frames
        for item in frame.scene.objects
        if item.kind and item.kind.name == "Car"
    ]
    assert 0.6 < np.mean(np.array(turns) < 0.35) < 0.95


def test_sizes_and_shares_are_those_of_the_types(frames):
    sizes = collections.defaultdict(list)
    for frame in frames:
        for item in frame.scene.objects:
            sizes[item.kind.name if item.kind else None].append(item.size)
    total = sum(len(rows) for name, rows in sizes.items() if name)
    for kitti_type in TYPES:
        name = kitti_type.kind.name
        assert len(sizes[name]) / total == pytest.approx(kitti_type.share, abs=0.12)
        np.testing.assert_allclose(np.mean(sizes[name], axis=0), kitti_type.kind.size, rtol=0.1)
    spread = np.std(np.log(sizes["Car"]), axis=0)
    np.testing.assert_allclose(spread, CONFIG.size_sigma, rtol=0.25)
    assert sum(t.share for t in TYPES) == pytest.approx(1.0)


def test_numbers_of_objects_stay_in_their_range():
    config = KittiWorldConfig(min_objects=0, max_objects=2, distractors=0)
    counts = collections.Counter(len(make_frame(config, i).scene.objects) for i in range(40))
    assert set(counts) == {0, 1, 2}
