import math

import numpy as np
import pytest
from pyquaternion import Quaternion

from bevkd2.data.synthetic.nuscenes.rig import euler_quaternion, make_rig
from bevkd2.structures import CAMERA_NAMES

YAWS = {
    "CAM_FRONT": 0,
    "CAM_FRONT_RIGHT": -55,
    "CAM_FRONT_LEFT": 55,
    "CAM_BACK": 180,
    "CAM_BACK_LEFT": 110,
    "CAM_BACK_RIGHT": -110,
}


@pytest.fixture
def rig():
    return make_rig(np.random.default_rng(0), (176, 64))


def test_euler_quaternion_is_yaw_after_pitch_after_roll():
    expected = (
        Quaternion(axis=[0, 0, 1], angle=0.7)
        * Quaternion(axis=[0, 1, 0], angle=-0.3)
        * Quaternion(axis=[1, 0, 0], angle=0.2)
    )
    np.testing.assert_allclose(euler_quaternion(0.7, -0.3, 0.2), expected.elements, atol=1e-12)


def test_order_is_the_lidar_then_the_cameras(rig):
    assert [sensor.channel for sensor in rig] == ["LIDAR_TOP", *CAMERA_NAMES]


def test_camera_axes_have_the_nominal_directions(rig):
    for camera in rig[1:]:
        right, down, forward = camera.sensor2ego[:3, :3].T
        yaw = math.radians(YAWS[camera.channel])
        np.testing.assert_allclose(forward, [math.cos(yaw), math.sin(yaw), 0], atol=0.03)
        np.testing.assert_allclose(down, [0, 0, -1], atol=0.03)
        np.testing.assert_allclose(np.cross(right, down), forward, atol=1e-9)


def test_fields_of_view(rig):
    for camera in rig[1:]:
        fov = 2 * math.degrees(math.atan(88 / camera.intrinsics[0, 0]))
        assert fov == pytest.approx(110 if camera.channel == "CAM_BACK" else 70, abs=2)


def test_the_cameras_cover_all_directions(rig):
    """Every direction at ground level, 20 m away, is in some image."""
    for angle in np.linspace(-np.pi, np.pi, 72):
        point = np.array([20 * math.cos(angle), 20 * math.sin(angle), 1.0, 1.0])
        seen = False
        for camera in rig[1:]:
            local = np.linalg.inv(camera.sensor2ego) @ point
            u = (camera.intrinsics @ local[:3])[0] / local[2]
            seen |= bool(local[2] > 0 and 0 <= u <= 176)
        assert seen, math.degrees(angle)


def test_the_lidar_x_axis_points_right_with_a_small_tilt(rig):
    matrix = rig[0].sensor2ego
    np.testing.assert_allclose(matrix[:3, 0], [0, -1, 0], atol=0.04)
    np.testing.assert_allclose(matrix[:3, 1], [1, 0, 0], atol=0.04)
    assert abs(matrix[2, 0]) + abs(matrix[2, 1]) > 1e-3
    assert matrix[2, 3] > 1
