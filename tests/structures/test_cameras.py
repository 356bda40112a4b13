import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.geometry_utils import transform_matrix, view_points
from pyquaternion import Quaternion

from bevkd2.structures import (
    CAMERA_NAMES,
    invert_pose,
    lidar2img_matrix,
    pose_matrix,
    project_points,
    quaternion_to_matrix,
    quaternion_yaw,
    scale_intrinsics,
    unproject_points,
)

quaternions = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1)


@pytest.fixture(scope="module")
def nusc(shared_dir):
    return NuScenes("v1.0-one", str(shared_dir / "real" / "nuscenes-one"), verbose=False)


def sensor_poses(nusc, channel):
    """sensor2ego, ego2global and the intrinsics of a channel in the real frame."""
    record = nusc.get("sample_data", nusc.sample[0]["data"][channel])
    calibration = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
    ego = nusc.get("ego_pose", record["ego_pose_token"])
    return (
        pose_matrix(calibration["translation"], calibration["rotation"]),
        pose_matrix(ego["translation"], ego["rotation"]),
        np.array(calibration["camera_intrinsic"]),
    )


@given(q=quaternions, t=st.lists(st.floats(-100, 100), min_size=3, max_size=3))
@settings(max_examples=40, deadline=None)
def test_pose_matrix_equals_the_devkits(q, t):
    ours = pose_matrix(t, q)
    reference = Quaternion(q).normalised
    np.testing.assert_allclose(ours, transform_matrix(np.array(t), reference), atol=1e-9)
    np.testing.assert_allclose(
        invert_pose(ours), transform_matrix(np.array(t), reference, inverse=True), atol=1e-9
    )


def test_zero_quaternion_is_refused():
    with pytest.raises(ValueError, match="no quaternion"):
        quaternion_to_matrix([0, 0, 0, 0])
    with pytest.raises(ValueError, match="no quaternion"):
        quaternion_to_matrix([float("nan"), 0, 0, 1])


def test_quaternion_yaw():
    assert quaternion_yaw(Quaternion(axis=[0, 0, 1], degrees=100).elements) == pytest.approx(np.deg2rad(100))


@given(st.floats(0.3, 2), st.floats(0.3, 2))
@settings(max_examples=20, deadline=None)
def test_scaled_intrinsics_scale_the_projection(sx, sy):
    intrinsics = np.array([[500.0, 2, 300], [0, 450, 200], [0, 0, 1]])
    point = np.array([1.0, -2, 10])
    u, v, w = intrinsics @ point
    u2, v2, w2 = scale_intrinsics(intrinsics, sx, sy) @ point
    assert u2 / w2 == pytest.approx(sx * u / w)
    assert v2 / w2 == pytest.approx(sy * v / w)


def test_a_synthetic_camera_sees_what_is_in_front_of_it():
    # Looks along the lidar's +y: camera x = lidar x, camera y = -lidar z, camera z = lidar y; one metre
    # ahead.
    cam2lidar = np.array([[1.0, 0, 0, 0], [0, 0, 1, 1], [0, -1, 0, 0], [0, 0, 0, 1]])
    intrinsics = np.array([[100.0, 0, 80], [0, 100, 45], [0, 0, 1]])
    lidar2img = torch.from_numpy(lidar2img_matrix(intrinsics, cam2lidar))
    points = torch.tensor([[0.0, 11, 0], [1, 11, 0], [0, 11, 1], [0, -9, 0]], dtype=torch.float64)
    uv, depth = project_points(points, lidar2img)
    torch.testing.assert_close(depth, torch.tensor([10.0, 10, 10, -10]).double())
    torch.testing.assert_close(uv[:3], torch.tensor([[80.0, 45], [90, 45], [80, 35]]).double())


@pytest.mark.parametrize("channel", CAMERA_NAMES)
def test_projection_on_the_real_frame_equals_the_devkits(nusc, channel):
    """Box corners through the lidar frame, against the devkit's way through the global frame."""
    cam2ego, cam_ego2global, intrinsics = sensor_poses(nusc, channel)
    lidar2ego, lidar_ego2global, _ = sensor_poses(nusc, "LIDAR_TOP")
    lidar2global = lidar_ego2global @ lidar2ego
    lidar2img = lidar2img_matrix(intrinsics, invert_pose(lidar2global) @ cam_ego2global @ cam2ego)

    sample = nusc.sample[0]
    _, boxes, devkit_intrinsics = nusc.get_sample_data(sample["data"][channel])
    assert boxes
    for box in boxes:
        expected = view_points(box.corners(), devkit_intrinsics, normalize=True)[:2].T
        corners = nusc.get_box(box.token).corners().T
        in_lidar = (corners - lidar2global[:3, 3]) @ lidar2global[:3, :3]
        uv, depth = project_points(torch.from_numpy(in_lidar), torch.from_numpy(lidar2img))
        np.testing.assert_allclose(uv.numpy(), expected, atol=1e-6)
        np.testing.assert_allclose(depth.numpy(), box.corners()[2], atol=1e-6)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_unprojection_inverts_projection(batch: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn((*batch, 20, 3), generator=generator, dtype=torch.float64) + torch.tensor(
        [0, 0, 9.0]
    )
    matrix = torch.eye(4, dtype=torch.float64).repeat(*batch, 1, 1)
    # KITTI's P2: its third row has a translation too.
    matrix[..., :3, :] = torch.tensor(
        [[721.5, 0, 609.6, 44.86], [0, 721.5, 172.9, 0.216], [0, 0, 1, 0.00275]]
    ).double()
    uv, depth = project_points(points, matrix)
    torch.testing.assert_close(unproject_points(uv, depth, matrix), points)


def test_projections_keep_their_precision_under_autocast() -> None:
    points = torch.rand(50, 3) * 20 + 5
    matrix = torch.eye(4)
    matrix[:2, 2], matrix[0, 0], matrix[1, 1] = torch.tensor([600.0, 180.0]), 700, 700
    uv, depth = project_points(points, matrix)
    back = unproject_points(uv, depth, matrix)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(project_points(points, matrix), (uv, depth), rtol=0, atol=0)
        torch.testing.assert_close(unproject_points(uv, depth, matrix), back, rtol=0, atol=0)
