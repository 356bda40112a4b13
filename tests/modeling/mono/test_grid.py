"""Positions of the locations of dense detectors, in the order in which maps are flattened."""

import torch

from bevkd2.modeling.mono.grid import DenseGrid, flatten_levels

SHAPES, STRIDES = [(2, 3), (1, 2)], [4, 8]


def test_locations_are_in_the_middle_of_cells() -> None:
    grid = DenseGrid.of_levels(SHAPES, STRIDES, "cpu")
    expected = [[2, 2], [6, 2], [10, 2], [2, 6], [6, 6], [10, 6], [4, 4], [12, 4]]
    assert grid.locations.tolist() == expected
    assert grid.location_strides.tolist() == [4] * 6 + [8] * 2
    assert grid.per_location([(1, 2), (3, 4)]).tolist() == [[1, 2]] * 6 + [[3, 4]] * 2


def test_maps_are_flattened_in_the_order_of_locations() -> None:
    maps = []
    for (rows, columns), stride in zip(SHAPES, STRIDES, strict=True):
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        maps.append(torch.stack([x, y])[None] * stride + stride // 2)
    grid = DenseGrid.of_levels(SHAPES, STRIDES, "cpu")
    assert torch.equal(flatten_levels(maps)[0].float(), grid.locations)


def test_a_grid_needs_no_wait_for_the_device() -> None:
    """The meta device has no numbers to wait for: what asks for one fails there."""
    grid = DenseGrid.of_levels([(2, 3), (1, 2)], [8, 16], "meta")
    assert grid.location_strides.shape == (8,) and grid.location_strides.dtype == torch.float32
