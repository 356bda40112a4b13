import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyquaternion import Quaternion

from bevkd2.structures import (
    UPRIGHT_TO_CAMERA,
    Boxes3D,
    CameraBoxes3D,
    camera_from_upright,
    camera_to_upright,
    pose_matrix,
    project_boxes,
    project_points,
)

LEVEL = Quaternion(0.5, -0.5, 0.5, -0.5)  # a level camera that looks along +x of a frame with z up
angles = st.floats(-3.1, 3.1)


def camera_pose(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    turn = Quaternion(axis=[0, 0, 1], radians=yaw) * LEVEL
    tilt = Quaternion(axis=[1, 0, 0], radians=pitch) * Quaternion(axis=[0, 0, 1], radians=roll)
    return pose_matrix([600.0, 1600.0, 1.5], (turn * tilt).elements)


def test_a_box_ahead_of_a_camera_that_looks_along_x():
    # 10 m ahead, 2 m to the right, its heading to the right, driving away at 3 and to the right at 1 m/s.
    boxes = CameraBoxes3D(torch.tensor([[2.0, 0.5, 10.0, 4.5, 1.9, 1.6, 0.0, 1.0, 3.0]]))
    out = camera_to_upright(boxes, camera_pose())
    expected = [610.0, 1598.0, 1.0, 4.5, 1.9, 1.6, -math.pi / 2, 3.0, -1.0]
    torch.testing.assert_close(out.tensor[0], torch.tensor(expected, dtype=torch.float64))


@given(yaw=angles, rotation_y=angles, x=st.floats(-30, 30))
@settings(max_examples=40, deadline=None)
def test_conversion_for_a_level_camera_is_exact(yaw, rotation_y, x):
    boxes = CameraBoxes3D(torch.tensor([[x, 0.5, 20, 4.5, 1.9, 1.6, rotation_y, 3, -4]], dtype=torch.float64))
    pose = camera_pose(yaw)
    back = camera_from_upright(camera_to_upright(boxes, pose), pose)
    torch.testing.assert_close(back.tensor, boxes.tensor, atol=1e-9, rtol=0)


@given(yaw=angles, heading=angles, pitch=st.floats(-0.035, 0.035), roll=st.floats(-0.035, 0.035))
@settings(max_examples=60, deadline=None)
def test_conversion_error_grows_with_the_square_of_the_tilt(yaw, heading, pitch, roll):
    """Two degrees each way: centres and sizes are exact, the rest is off by at most tilt^2."""
    tensor = torch.tensor([[620.0, 1590, 0.8, 4.5, 1.9, 1.6, heading, 9, -4]], dtype=torch.float64)
    pose = camera_pose(yaw, pitch, roll)
    back = camera_to_upright(camera_from_upright(Boxes3D(tensor), pose), pose).tensor
    torch.testing.assert_close(back[:, :6], tensor[:, :6], atol=1e-9, rtol=0)
    tilt = abs(pitch) + abs(roll)
    assert abs(math.remainder(float(back[0, 6]) - heading, 2 * math.pi)) <= tilt**2 + 1e-9
    speed = math.hypot(9, 4)
    assert float((back - tensor)[0, 7:].norm()) <= speed * 2 * tilt**2 + 1e-9


@pytest.mark.parametrize("columns", [7, 9])
def test_no_boxes_and_dtypes(columns):
    empty = CameraBoxes3D.empty(columns)
    out = camera_to_upright(empty, camera_pose())
    assert out.tensor.shape == (0, columns) and out.tensor.dtype == torch.float64
    back = camera_from_upright(Boxes3D(torch.ones((2, columns))), camera_pose())
    assert back.tensor.shape == (2, columns) and back.tensor.dtype == torch.float32


def test_unknown_velocities_stay_unknown():
    boxes = Boxes3D(torch.tensor([[620.0, 1590, 0.8, 4.5, 1.9, 1.6, 0.3, math.nan, math.nan]]))
    out = camera_from_upright(boxes, camera_pose(0.3))
    assert out.velocity.isnan().all() and out.tensor[:, :7].isfinite().all()


def test_upright_boxes_are_projected_where_the_cameras_are():
    tensor = torch.tensor(
        [[2.0, 0.5, 10, 4.5, 1.9, 1.6, 0.4], [-6, 1, 25, 9, 2.5, 3, -2]], dtype=torch.float64
    )
    boxes = CameraBoxes3D(tensor)
    cam2img = torch.tensor([[700.0, 0, 600, 45], [0, 710, 180, 0.2], [0, 0, 1, 0.003], [0, 0, 0, 1]]).double()
    expected, _ = project_boxes(boxes, cam2img)
    given, _ = project_points(boxes.upright().corners(), cam2img @ torch.from_numpy(UPRIGHT_TO_CAMERA))
    # The same eight corners, in another order.
    distances = torch.cdist(given, expected).min(dim=2)
    assert distances.values.max() < 1e-9 and (distances.indices.sort(dim=1).values == torch.arange(8)).all()
