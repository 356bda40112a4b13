import math

import numpy as np
import pytest
import torch

from bevkd2.distill.methods.perspective_feature import PerspectiveWeights
from bevkd2.ops import Perspective
from bevkd2.visualization import draw_perspective, perspective_maps
from bevkd2.visualization.canvas import heat_map

SIZE = (96, 320)
SHAPES = {8: (12, 40), 32: (3, 10)}
PAPER = PerspectiveWeights(Perspective(), near_depth=None)
IMAGE = np.full((*SIZE, 3), 100, dtype=np.uint8)


def test_the_numbers_are_those_of_equation_3():
    maps = perspective_maps(PAPER, SIZE, SHAPES)
    assert {stride: cells.shape for stride, cells in maps.items()} == SHAPES
    x, y = 4.5 * 32 / 320 - 0.5, 0.5 * 32 / 96 - 0.5
    assert maps[32][0, 4] == pytest.approx(0.3 * math.exp(-((x / 0.7) ** 2) - (y / 0.7) ** 2), rel=1e-5)
    wide = perspective_maps(PerspectiveWeights(Perspective(1.0, (9.0, 0.2), (0.5, 0.25)), None), SIZE, SHAPES)
    assert np.unravel_index(wide[8].argmax(), (12, 40))[0] in (2, 3)


def test_a_near_object_lowers_the_weights_in_its_box_only():
    weights = PerspectiveWeights(Perspective(), near_depth=20.0)
    objects = torch.tensor([[160.0, 0, 320, 96]]), torch.tensor([5.0])
    plain, lowered = (
        perspective_maps(weights, SIZE, SHAPES),
        perspective_maps(weights, SIZE, SHAPES, *objects),
    )
    np.testing.assert_allclose(lowered[8][:, 20:], plain[8][:, 20:] / 4, rtol=1e-6)
    np.testing.assert_array_equal(lowered[8][:, :20], plain[8][:, :20])


def test_one_scale_from_zero_to_the_amplitude():
    rows = {"Eq. 3": {8: np.full((12, 40), 0.3), 32: np.full((3, 10), 0.15)}}
    picture = draw_perspective(IMAGE, rows, 0.3, tile_width=320)
    full, half = heat_map(np.array([[0.3, 0.15]]), 0.0, 0.3)[0].astype(float)
    np.testing.assert_allclose(picture[60, 300], 0.75 * full + 0.25 * 100, atol=1)
    np.testing.assert_allclose(picture[60, 326 + 300], 0.75 * half + 0.25 * 100, atol=1)


def test_every_variant_has_a_row():
    maps = perspective_maps(PAPER, SIZE, SHAPES)
    one = draw_perspective(IMAGE, {"a": maps}, 0.3, tile_width=320)
    two = draw_perspective(IMAGE, {"a": maps, "b": maps}, 0.3, tile_width=320)
    assert two.shape[0] == one.shape[0] + 96 + 3
