"""Where locations stand, in the order in which maps are flattened."""

import torch

from bevkd2.modeling.mono.grid import flatten_levels, locations_of, strides_of_locations

SHAPES, STRIDES = [(2, 3), (1, 2)], [4, 8]
CPU = torch.device("cpu")


def test_locations_stand_in_the_middle_of_cells():
    expected = [[2, 2], [6, 2], [10, 2], [2, 6], [6, 6], [10, 6], [4, 4], [12, 4]]
    assert locations_of(SHAPES, STRIDES, CPU).tolist() == expected
    assert strides_of_locations(SHAPES, STRIDES, CPU).tolist() == [4] * 6 + [8] * 2


def test_maps_are_flattened_in_the_order_of_locations():
    maps = []
    for (rows, columns), stride in zip(SHAPES, STRIDES, strict=True):
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        maps.append(torch.stack([x, y])[None] * stride + stride // 2)
    assert torch.equal(flatten_levels(maps)[0].float(), locations_of(SHAPES, STRIDES, CPU))


def test_strides_of_locations_need_no_wait_for_the_device():
    """The meta device has no numbers to wait for: what asks for one fails there."""
    strides = strides_of_locations([(2, 3), (1, 2)], [8, 16], torch.device("meta"))
    assert strides.shape == (8,) and strides.dtype == torch.float32
