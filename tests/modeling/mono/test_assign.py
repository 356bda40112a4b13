"""Assignment of locations to objects: every rule on cases small enough to count by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bevkd2.modeling.mono.assign import assign_locations, distances_to_sides
from bevkd2.modeling.mono.grid import DenseGrid
from bevkd2.modeling.mono.inputs import MonoTargets
from tests.modeling.mono import scenes


def _targets(centers2d: list, boxes2d: list) -> MonoTargets:
    """One image with these projected centres and 2D boxes; nothing else is read."""
    targets = scenes.annotations([[]])
    centers = torch.tensor(centers2d).reshape(-1, 2)
    return dataclasses.replace(
        targets, centers2d=[centers], boxes2d=[torch.tensor(boxes2d).reshape(-1, 4)], assigned=None
    )


def _grid(targets: MonoTargets, shape: tuple[int, int], stride: int, ranges: tuple[float, float]) -> list:
    targets.grid = DenseGrid.of_levels([shape], [stride], "cpu")
    return assign_locations(targets, [ranges]).reshape(shape).tolist()


def test_locations_nearer_than_one_and_a_half_strides_are_positive():
    # Columns are at 4, 12, 20, 28, 36: 20, 12, 4, 4 and 12 px from the centre, and 12 px are too far.
    targets = _targets([[24.0, 12.0]], [[10.0, 6.0, 30.0, 18.0]])
    assert _grid(targets, (3, 5), 8, (-1, 100)) == [[-1, -1, 0, 0, -1]] * 3


def test_the_neighbourhood_is_a_square():
    # The location (12, 4) is 11 px from the centre in x and in y, so farther than 12 px as the crow flies.
    targets = _targets([[23.0, 15.0]], [[10.0, 6.0, 30.0, 18.0]])
    assert _grid(targets, (3, 5), 8, (-1, 100))[0] == [-1, 0, 0, 0, -1]


def test_both_ends_of_a_levels_range_are_included():
    # From (20, 12) the farthest side is 10 px away, from (12, 12) it is 18.
    targets = _targets([[20.0, 12.0]], [[10.0, 6.0, 30.0, 18.0]])
    assert _grid(targets, (3, 5), 8, (18, 18))[1] == [-1, 0, -1, 0, -1]
    assert _grid(targets, (3, 5), 8, (-1, 10))[1] == [-1, -1, 0, -1, -1]


def test_a_location_outside_of_the_2d_box_may_be_positive():
    # The projected 3D centre of a truncated object can lie beside its clipped 2D box.
    targets = _targets([[20.0, 12.0]], [[0.0, 0.0, 10.0, 24.0]])
    assert _grid(targets, (3, 5), 8, (-1, 100))[1] == [-1, 0, 0, 0, -1]


def test_the_nearest_projected_centre_wins_and_not_the_smaller_box():
    boxes2d = [[0.0, 0.0, 40.0, 24.0], [18.0, 10.0, 24.0, 14.0]]
    targets = _targets([[12.0, 12.0], [23.0, 12.0]], boxes2d)
    assert _grid(targets, (3, 5), 8, (-1, 100))[1] == [0, 0, 1, 1, -1]


def test_of_equal_centres_the_first_wins():
    targets = _targets([[20.0, 12.0]] * 2, [[10.0, 6.0, 30.0, 18.0]] * 2)
    assert _grid(targets, (3, 5), 8, (-1, 100))[1] == [-1, 0, 0, 0, -1]


def test_an_object_goes_to_the_level_of_its_size():
    targets = scenes.annotations([[scenes.LARGE, scenes.FAR]])
    fine, coarse = targets.assigned.split([rows * columns for rows, columns in scenes.SHAPES], dim=1)
    assert 1 in fine
    assert 0 in coarse
    assert 0 not in fine


def test_an_image_without_objects_is_background():
    assigned = scenes.annotations([[]]).assigned
    assert assigned.shape == (1, 8 * 12 + 4 * 6)
    assert assigned.dtype == torch.int64
    assert bool((assigned == -1).all())


def test_a_batch_of_two_is_two_batches_of_one():
    images = [[scenes.NEAR, scenes.FAR], [scenes.LARGE]]
    both = scenes.annotations(images).assigned
    alone = torch.cat([scenes.annotations([image]).assigned for image in images])
    assert torch.equal(both, alone)


def test_levels_round_up_as_convolutions_of_stride_two_do():
    assert DenseGrid.of_image((928, 1600), [8, 16, 32, 64, 128], "cpu").shapes == [
        (116, 200),
        (58, 100),
        (29, 50),
        (15, 25),
        (8, 13),
    ]


def test_distances_beyond_a_side_are_negative():
    distances = distances_to_sides(torch.tensor([5.0, 6.0]), torch.tensor([10.0, 0.0, 30.0, 20.0]))
    assert distances.tolist() == [-5, 6, 25, 14]


def test_levels_and_ranges_of_different_number_are_refused():
    with pytest.raises(ValueError, match=r"2 levels, 1 regress ranges"):
        assign_locations(scenes.annotations([[]]), [(-1, 1e8)])
