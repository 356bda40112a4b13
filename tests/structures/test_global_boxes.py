import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nuscenes.nuscenes import NuScenes
from pyquaternion import Quaternion

from bevkd2.structures import Boxes3D, GlobalBoxes, from_global, pose_matrix, quaternion_to_matrix, to_global

angles = st.floats(-3.1, 3.1)


def upright_pose(yaw: float) -> np.ndarray:
    return pose_matrix([600.0, 1600.0, 1.8], Quaternion(axis=[0, 0, 1], radians=yaw).elements)


@given(lidar_yaw=angles, yaw=angles)
@settings(max_examples=40, deadline=None)
def test_round_trip_through_the_global_frame(lidar_yaw, yaw):
    tensor = torch.tensor([[5.0, 20, -1, 4.5, 1.9, 1.6, yaw, 3, -4]])
    pose = upright_pose(lidar_yaw)
    there = to_global(Boxes3D(tensor), pose)
    back = from_global(there, pose).tensor
    torch.testing.assert_close(back, tensor, atol=2e-4, rtol=0)
    np.testing.assert_allclose(there.size, [[1.9, 4.5, 1.6]], atol=1e-6)
    assert np.linalg.norm(there.velocity) == pytest.approx(5, abs=1e-6)


def test_boxes_without_velocity_get_zero():
    out = to_global(Boxes3D(torch.ones((2, 7))), np.eye(4))
    assert out.velocity.tolist() == [[0, 0], [0, 0]]


def test_no_boxes_both_ways():
    empty = to_global(Boxes3D.empty(), np.eye(4))
    assert len(empty) == 0
    assert from_global(empty, np.eye(4)).tensor.shape == (0, 9)


@pytest.mark.parametrize("axis", [[0, 0, 1], [1, 0, 0], [0, 1, 0], [1, 2, 3]])
@pytest.mark.parametrize("degrees", [0, 90, 179.9, 180, 181])
def test_rotation_of_the_sensor_is_in_the_quaternion(axis, degrees):
    quaternion = Quaternion(axis=axis, degrees=degrees)
    out = to_global(Boxes3D(torch.zeros((1, 7))), pose_matrix([0, 0, 0], quaternion.elements))
    np.testing.assert_allclose(quaternion_to_matrix(out.rotation[0]), quaternion.rotation_matrix, atol=1e-7)


def test_real_frame_equals_the_devkits_boxes(shared_dir):
    nusc = NuScenes("v1.0-one", str(shared_dir / "real" / "nuscenes-one"), verbose=False)
    sample = nusc.sample[0]
    lidar_token = sample["data"]["LIDAR_TOP"]
    record = nusc.get("sample_data", lidar_token)
    calibration = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
    ego = nusc.get("ego_pose", record["ego_pose_token"])
    lidar2global = pose_matrix(ego["translation"], ego["rotation"]) @ pose_matrix(
        calibration["translation"], calibration["rotation"]
    )
    annotations = [nusc.get("sample_annotation", token) for token in sample["anns"]]
    boxes = GlobalBoxes(
        translation=np.array([a["translation"] for a in annotations]),
        size=np.array([a["size"] for a in annotations]),
        rotation=np.array([a["rotation"] for a in annotations]),
        velocity=np.full((len(annotations), 2), np.nan),
    )
    ours = from_global(boxes, lidar2global)
    _, devkit_boxes, _ = nusc.get_sample_data(lidar_token)
    assert len(ours) == len(devkit_boxes) == 68
    assert ours.velocity.isnan().all()
    for row, box in zip(ours.tensor.numpy(), devkit_boxes, strict=True):
        np.testing.assert_allclose(row[:3], box.center, atol=1e-4)
        np.testing.assert_allclose(row[[4, 3, 5]], box.wlh, atol=1e-6)
        # The real lidar is tilted by a degree: the corners of the upright box stay within two percent of its
        # size.
        corners = Boxes3D(torch.from_numpy(row[None, :7])).corners()[0].numpy()
        np.testing.assert_allclose(corners, box.corners().T, atol=0.02 * float(np.linalg.norm(box.wlh)))
    back = to_global(ours, lidar2global)
    np.testing.assert_allclose(back.translation, boxes.translation, atol=1e-4)
