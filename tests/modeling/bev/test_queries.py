import math

import pytest
import torch
from torchvision.transforms.functional import rotate

from bevkd2.modeling.bev.geometry import (
    BEVGeometry,
    bev_reference_points,
    ego_motion,
    gather_cells,
    grid_shift,
    rotation_source_index,
)
from bevkd2.modeling.bev.layers import BEVPosition

PC_RANGE = (-51.2, -38.4, -5.0, 51.2, 44.8, 3.0)


def can_bus(x: float, y: float, yaw_degrees: float) -> torch.Tensor:
    vector = torch.zeros(1, 18, dtype=torch.float64)
    vector[0, 0], vector[0, 1] = x, y
    vector[0, 16], vector[0, 17] = math.radians(yaw_degrees) % (2 * math.pi), yaw_degrees
    return vector


def test_position_has_columns_first():
    position = BEVPosition((2, 3), 8)
    table = position().detach()
    assert table.shape == (6, 8)
    cell = 1 * 3 + 2  # row 1, column 2
    assert torch.equal(table[cell, :4], position.column[2])
    assert torch.equal(table[cell, 4:], position.row[1])


def test_motion_is_zero_without_history():
    now, before = can_bus(10, 5, 30), can_bus(7, 1, 20)
    delta = ego_motion(now, before, torch.tensor([True]))
    assert delta[0, :2].tolist() == [3.0, 4.0]
    assert float(delta[0, 17]) == pytest.approx(10)
    assert float(delta[0, 16]) == pytest.approx(math.radians(30))  # stays absolute
    none = ego_motion(now, before, torch.tensor([False]))
    assert none[0, :3].abs().sum() + none[0, 17].abs() == 0
    assert now[0, 0] == 10  # the argument is not changed


@pytest.mark.parametrize("yaw", [0.0, 90.0, 200.0])
def test_driving_straight_shifts_forward_for_any_heading(yaw: float):
    step = 5.0
    now = can_bus(step * math.cos(math.radians(yaw)), step * math.sin(math.radians(yaw)), yaw)
    shift = grid_shift(ego_motion(now, can_bus(0, 0, yaw), torch.tensor([True])), PC_RANGE)
    torch.testing.assert_close(shift[0], torch.tensor([0.0, step / 83.2], dtype=torch.float64))


def test_sliding_right_shifts_along_x():
    now = can_bus(0, -5.0, 0)  # the ego faces +x, so its right is -y
    shift = grid_shift(ego_motion(now, can_bus(0, 0, 0), torch.tensor([True])), PC_RANGE)
    torch.testing.assert_close(shift[0], torch.tensor([5.0 / 102.4, 0.0], dtype=torch.float64))


def test_shift_aligns_a_static_object():
    """An object at p now was, seen from the old pose, at p + shift."""
    ahead_before, step = 20.0, 4.0
    shift = grid_shift(ego_motion(can_bus(0, step, 90), can_bus(0, 0, 90), torch.tensor([True])), PC_RANGE)
    ahead_now = ahead_before - step
    assert ahead_now / 83.2 + float(shift[0, 1]) == pytest.approx(ahead_before / 83.2)


def test_rotation_aligns_a_static_object():
    """The ego turns left in place by 90 degrees: an object ahead is then on the right."""
    shape = (5, 5)
    bev = torch.zeros(1, 25, 1)
    bev[0, 4 * 5 + 2] = 1  # straight ahead: last row, middle column
    source = rotation_source_index(torch.tensor([90.0], dtype=torch.float64), shape, (2.5, 2.5))
    turned = gather_cells(bev, source)[0, :, 0].reshape(shape)
    assert turned.nonzero().tolist() == [[2, 4]]  # middle row, last column


@pytest.mark.parametrize("degrees", [0.0, 3.7, -17.3, 181.0])
@pytest.mark.parametrize("center", [(100, 100), (6, 4.5)])
def test_rotation_is_torchvisions(degrees: float, center: tuple[float, float]):
    torch.manual_seed(0)
    bev = torch.randn(1, 9 * 12, 4)
    source = rotation_source_index(torch.tensor([degrees], dtype=torch.float64), (9, 12), center)
    ours = gather_cells(bev, source)[0].T.reshape(4, 9, 12)
    expected = rotate(bev[0].T.reshape(4, 9, 12), degrees, center=list(center))
    assert (ours != expected).any(0).sum() <= 1  # a tie of nearest neighbours may fall either way


def test_each_row_of_a_batch_turns_by_its_own_angle():
    angles = torch.tensor([0.0, 90.0], dtype=torch.float64)
    both = rotation_source_index(angles, (4, 4), (2, 2))
    assert torch.equal(both[0], torch.arange(16))
    assert torch.equal(both[1:], rotation_source_index(angles[1:], (4, 4), (2, 2)))
    assert not torch.equal(both[0], both[1])


@pytest.mark.parametrize("move", [(3.0, 1.0, 0.3), (0.0, 0.0, -0.5), (-2.0, 4.0, 0.0)])
def test_the_bilinear_previous_grid_lies_where_the_poses_say(move: tuple[float, float, float]):
    """A grid that holds its own coordinates is read exactly; rotation and shift are both in it."""
    shape, pc_range = (16, 20), (-20.0, -16.0, -5.0, 20.0, 16.0, 3.0)
    geometry = BEVGeometry(shape, pc_range, 4, bilinear=True)
    before = torch.zeros(1, 18, dtype=torch.float64)
    before[0, 16] = 2.0
    now = before.clone()
    now[0, :2] += torch.tensor(move[:2], dtype=torch.float64)
    now[0, 16] += move[2]
    for pose in (before, now):
        pose[0, 17] = torch.rad2deg(pose[0, 16])
    centers = bev_reference_points(shape, torch.device("cpu")).double()
    centers = centers * torch.tensor([40.0, 32.0]) - torch.tensor([20.0, 16.0])

    def axes(pose: torch.Tensor) -> torch.Tensor:
        """Rows: where right and forward point in the global frame."""
        sin, cos = pose[0, 16].sin(), pose[0, 16].cos()
        return torch.stack([torch.stack([sin, -cos]), torch.stack([cos, sin])])

    expected = (centers @ axes(now) + now[0, :2] - before[0, :2]) @ axes(before).T
    motion = geometry.motion(now, before, [True])
    aligned = geometry.align(centers[None].float(), motion)[0]
    inside = (expected.abs() <= torch.tensor([19.0, 15.0])).all(1)
    assert 150 < int(inside.sum()) <= len(inside)
    torch.testing.assert_close(aligned[inside], expected[inside].float(), atol=1e-4, rtol=0)
    outside = (expected.abs() > torch.tensor([21.0, 17.0])).any(1)
    assert torch.equal(aligned[outside], torch.zeros_like(aligned[outside]))
    points = geometry.temporal_reference_points(motion, [True])
    torch.testing.assert_close(points[:, 0], points[:, 1])  # nothing is left to shift


def test_the_bilinear_previous_grid_of_a_standing_ego_is_itself():
    bev, still = torch.randn(2, 12, 8), torch.zeros(2, 18, dtype=torch.float64)
    aligned = BEVGeometry((3, 4), (-4.0, -3.0, -5.0, 4.0, 3.0, 3.0), 4, bilinear=True).align(bev, still)
    torch.testing.assert_close(aligned, bev)
