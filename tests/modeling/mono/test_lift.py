"""Yaws and boxes from the image plane: the inverse of the targets."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from bevkd2.modeling.mono.lift import direction_of, full_local_yaw, lift_boxes
from bevkd2.structures import CameraBoxes3D, project_points
from tests.modeling.mono import scenes

OFFSET = 0.7854


@given(st.floats(-10, 10), st.integers(-3, 3))
def test_the_yaw_modulo_pi_and_its_direction_are_the_whole_yaw(yaw: float, turns: int):
    local = torch.tensor([yaw], dtype=torch.float64)
    whole = full_local_yaw(local + turns * math.pi, direction_of(local, OFFSET), OFFSET)
    assert float(torch.cos(whole - local)) > 1 - 1e-9
    assert OFFSET <= float(whole) < OFFSET + 2 * math.pi


def test_the_first_direction_begins_at_the_offset():
    yaws = torch.tensor([OFFSET + 0.01, OFFSET - 0.01, OFFSET + math.pi + 0.01, OFFSET + 2 * math.pi + 0.01])
    assert direction_of(yaws, OFFSET).tolist() == [0, 1, 1, 0]


def test_boxes_are_lifted_to_where_they_were():
    # Without a translation the ray's azimuth is the centre's.
    cam2img = scenes.camera(torch.float64, translation=False)
    boxes = CameraBoxes3D(torch.tensor([scenes.NEAR, scenes.FAR], dtype=torch.float64)[:, :7])
    centers2d, depths = project_points(boxes.center, cam2img)
    lifted = lift_boxes(centers2d, depths, boxes.size[:, [0, 2, 1]], boxes.alpha(), cam2img.expand(2, 4, 4))
    torch.testing.assert_close(lifted, boxes.tensor, rtol=0, atol=1e-12)


def test_a_translation_moves_the_centre_right_and_the_yaw_by_milliradians():
    cam2img = scenes.camera(torch.float64)
    boxes = CameraBoxes3D(torch.tensor([scenes.NEAR], dtype=torch.float64)[:, :7])
    centers2d, depths = project_points(boxes.center, cam2img)
    lifted = lift_boxes(centers2d, depths, boxes.size[:, [0, 2, 1]], boxes.alpha(), cam2img[None])
    torch.testing.assert_close(lifted[:, :6], boxes.tensor[:, :6], rtol=0, atol=1e-12)
    # 4.4 px m at 10 m are 0.44 px, 6 mrad at a focal length of 70 px.
    assert 0.003 < float((lifted[:, 6] - boxes.rotation_y).abs()) < 0.009
