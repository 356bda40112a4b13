import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nuscenes.utils.data_classes import Box
from pyquaternion import Quaternion

from bevkd2.structures import Boxes3D, wrap_angle


def random_boxes(n: int, seed: int = 0, columns: int = 9) -> Boxes3D:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn((n, columns), generator=generator, dtype=torch.float64) * 10
    tensor[:, 3:6] = tensor[:, 3:6].abs() + 0.5
    return Boxes3D(tensor)


@pytest.mark.parametrize("shape", [(3, 8), (7,), (2, 3, 9)])
def test_wrong_shape_is_named(shape):
    with pytest.raises(ValueError, match="expected \\(N, 7\\) or \\(N, 9\\)"):
        Boxes3D(torch.zeros(shape))


def test_integer_tensor_is_refused():
    with pytest.raises(ValueError, match="int64"):
        Boxes3D(torch.zeros((1, 7), dtype=torch.int64))


def test_indexing_and_cat():
    boxes = random_boxes(5)
    assert len(boxes[2]) == 1
    torch.testing.assert_close(boxes[2].tensor[0], boxes.tensor[2])
    mask = torch.tensor([True, False, True, False, False])
    assert len(boxes[mask]) == 2
    torch.testing.assert_close(Boxes3D.cat([boxes[:2], boxes[2:]]).tensor, boxes.tensor)
    assert len(Boxes3D.empty()) == 0 and Boxes3D.empty().has_velocity
    with pytest.raises(ValueError, match=r"\[7, 9\] columns"):
        Boxes3D.cat([random_boxes(1), random_boxes(1, columns=7)])


def test_velocity_needs_nine_columns():
    with pytest.raises(ValueError, match="7 columns"):
        _ = random_boxes(1, columns=7).velocity


def test_to_changes_dtype():
    assert random_boxes(2).to(torch.float32).tensor.dtype is torch.float32


def test_corners_equal_the_devkits():
    boxes = random_boxes(20)
    for row, corners in zip(boxes, boxes.corners(), strict=True):
        x, y, z, length, width, height, yaw = row[:7].tolist()
        box = Box([x, y, z], [width, length, height], Quaternion(axis=[0, 0, 1], radians=yaw))
        np.testing.assert_allclose(corners.numpy(), box.corners().T, atol=1e-9)


def test_bottom_center_is_the_mean_of_the_bottom_corners():
    boxes = random_boxes(4)
    torch.testing.assert_close(boxes.bottom_center, boxes.corners()[:, [2, 3, 6, 7]].mean(dim=1))


def test_in_range_is_strict_and_per_dimension():
    tensor = torch.zeros((4, 7))
    tensor[:, 0] = torch.tensor([0.0, 10.0, 9.99, 0.0])
    tensor[:, 2] = torch.tensor([0.0, 0.0, 0.0, 99.0])
    boxes = Boxes3D(tensor)
    assert boxes.in_range((-10, -10, 10, 10)).tolist() == [True, False, True, True]
    assert boxes.in_range((-10, -10, -5, 10, 10, 3)).tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match="5 limits"):
        boxes.in_range((0, 0, 0, 0, 0))


@given(angle=st.floats(-1e4, 1e4, width=32))
@settings(max_examples=100, deadline=None)
def test_wrap_angle_is_in_range_and_equivalent(angle):
    for dtype in (torch.float32, torch.float64):
        wrapped = wrap_angle(torch.tensor(angle, dtype=dtype))
        assert -math.pi <= float(wrapped) < math.pi + 1e-6
        tolerance = 2e-3 if dtype is torch.float32 else 1e-9
        assert abs(math.sin(float(wrapped)) - math.sin(angle)) < tolerance


def test_wrap_angle_sends_pi_to_minus_pi():
    assert float(wrap_angle(torch.tensor(math.pi, dtype=torch.float64))) == -math.pi
    assert float(wrap_angle(torch.tensor(-math.pi, dtype=torch.float64))) == -math.pi


@given(angle=st.floats(-100, 100), start=st.floats(-4, 4), period=st.sampled_from([math.pi, 2 * math.pi]))
@settings(max_examples=50, deadline=None)
def test_wrap_angle_into_any_period(angle, start, period):
    wrapped = float(wrap_angle(torch.tensor(angle, dtype=torch.float64), start=start, period=period))
    assert start <= wrapped < start + period
    turns = (wrapped - angle) / period
    assert abs(turns - round(turns)) < 1e-12


@given(angle=st.floats(-6, 6), seed=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_rotation_moves_corners_rigidly(angle, seed):
    boxes = random_boxes(3, seed)
    rotation = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    ).double()
    turned = boxes.rotate(angle)
    torch.testing.assert_close(
        turned.corners()[..., :2], boxes.corners()[..., :2] @ rotation.T, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(turned.velocity, boxes.velocity @ rotation.T, atol=1e-4, rtol=0)
    torch.testing.assert_close(turned.rotate(-angle).center, boxes.center, atol=1e-4, rtol=0)


def test_translate_leaves_the_rest():
    boxes = random_boxes(3)
    moved = boxes.translate(torch.tensor([1.0, -2.0, 3.0]))
    torch.testing.assert_close(
        moved.corners() - boxes.corners(), torch.tensor([1.0, -2, 3]).double().expand(3, 8, 3)
    )
    torch.testing.assert_close(moved.tensor[:, 3:], boxes.tensor[:, 3:])
