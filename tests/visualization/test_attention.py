import math

import numpy as np

from bevkd2.visualization import (
    attention_entropy,
    draw_cell_attention,
    sampling_pixels,
)
from bevkd2.visualization.attention import draw_samples

HEADS, LEVELS, POINTS = 2, 2, 4


def test_points_are_offset_from_their_pillar_point_in_cells_of_their_level():
    reference = np.array([[[0.5, 0.5], [0.25, 0.75]]])
    offsets = np.zeros((1, 2, 4, 2))
    offsets[0, 0, 1] = [1.0, -2.0]
    offsets[0, 1, 2] = [1.0, 1.0]
    pixels = sampling_pixels(reference, offsets, [(10, 20), (5, 10)], (100, 200))
    assert pixels.shape == (1, 1, 2, 4, 2)
    np.testing.assert_allclose(pixels[0, 0, 0, 0], [100, 50])
    # Point 1 belongs to pillar point 1; a cell of the first level is 10 pixels wide and high.
    np.testing.assert_allclose(pixels[0, 0, 0, 1], [50 + 10, 75 - 20])
    # Point 2 belongs to pillar point 0 again; a cell of the second level is 20 pixels.
    np.testing.assert_allclose(pixels[0, 0, 1, 2], [100 + 20, 50 + 20])


def test_heavier_points_are_larger_and_outside_ones_left_out():
    image = np.zeros((50, 100, 3), dtype=np.uint8)
    pixels = np.array([[20.0, 25.0], [70.0, 25.0], [300.0, 25.0]])
    drawn = draw_samples(image, pixels, np.array([0.1, 0.6, 0.3])).any(axis=-1)
    assert 0 < drawn[:, :45].sum() < 0.5 * drawn[:, 45:].sum()
    assert drawn[:, 85:].sum() == 0


def test_weights_of_zero_draw_no_points():
    image = np.full((10, 10, 3), 100, dtype=np.uint8)
    assert (draw_samples(image, np.zeros((2, 2)), np.zeros(2)) == 60).all()


def test_cameras_that_do_not_see_the_cell_stay_without_points():
    images = {name: np.zeros((40, 60, 3), dtype=np.uint8) for name in ("CAM_FRONT", "CAM_BACK")}
    pixels = np.full((2, 1, 1, 2, 2), 30.0)
    picture = draw_cell_attention(images, pixels, np.full((1, 1, 2), 0.5), np.array([True, False]))
    front, back = picture[20:40, 62:122], picture[62:, 62:122]
    assert front.any()
    assert not back.any()


def test_entropy_is_zero_for_one_point_and_greatest_for_all_alike():
    sharp = np.zeros((1, HEADS, LEVELS, POINTS))
    sharp[:, :, 0, 0] = 1
    flat = np.full((1, HEADS, LEVELS, POINTS), 1 / 8)
    entropy = attention_entropy(np.concatenate([sharp, flat]))
    np.testing.assert_allclose(entropy, [0, math.log(8)], atol=1e-12)
