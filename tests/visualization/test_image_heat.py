import numpy as np
import pytest

from bevkd2.visualization.canvas import heat_map
from bevkd2.visualization.image_heat import color_bar, content_cells, draw_heat_grid, over_image

IMAGE = np.full((30, 100, 3), 200, dtype=np.uint8)


def one_hot(shape, i, j):
    cells = np.zeros(shape)
    cells[i, j] = 1.0
    return cells


def test_cells_of_padding_only_are_left_out():
    cells = np.arange(4 * 16).reshape(4, 16).astype(float)
    np.testing.assert_array_equal(content_cells(cells, 8, (30, 100)), cells[:4, :13])
    np.testing.assert_array_equal(content_cells(cells, 8, (24, 96)), cells[:3, :12])


@pytest.mark.parametrize("shape", [(3, 16), (4, 12), (4, 16, 1)])
def test_a_level_that_does_not_cover_the_image_is_an_error(shape):
    with pytest.raises(ValueError, match=r"stride 8 has cells .* expected at least \(4, 13\)"):
        content_cells(np.zeros(shape), 8, (30, 100))


def test_a_cell_covers_its_pixels():
    spread = over_image(one_hot((4, 16), 1, 5), 8, (30, 100), smooth=False)
    expected = np.zeros((30, 100))
    expected[8:16, 40:48] = 1
    np.testing.assert_array_equal(spread, expected)


def test_smoothing_peaks_at_the_cells_centre():
    spread = over_image(one_hot((4, 16), 1, 5), 8, (30, 100), smooth=True)
    assert spread.shape == (30, 100)
    rows, columns = np.nonzero(spread == spread.max())
    assert (rows.mean() + 0.5, columns.mean() + 0.5) == (12.0, 44.0)
    np.testing.assert_allclose(spread.sum(), 64, rtol=1e-6)


def test_the_bar_runs_from_dark_to_bright():
    bar = color_bar(0.0, 0.3, 120)
    np.testing.assert_array_equal(bar[6, 0], heat_map(np.zeros((1, 1)), 0, 1)[0, 0])
    np.testing.assert_array_equal(bar[6, -1], heat_map(np.ones((1, 1)), 0, 1)[0, 0])
    assert (bar[14:, :30] < 100).any()
    assert (bar[14:, -30:] < 100).any()


def grid(rows, scales=None, opacity=1.0, **kwargs):
    scales = scales or {8: (0.0, 1.0), 16: (0.0, 2.0)}
    return draw_heat_grid(IMAGE, rows, scales, smooth=False, opacity=opacity, tile_width=100, **kwargs)


LEVELS = {8: np.full((4, 16), 1.0), 16: np.full((2, 8), 1.0)}


def test_columns_are_levels_and_rows_are_names():
    """The same number is bright by the first column's scale and medium by the second one's."""
    picture = grid({"a": LEVELS, "b": {8: 0 * LEVELS[8]}})
    colors = heat_map(np.array([[1.0, 0.5, 0.0]]), 0.0, 1.0)[0]
    row_a, row_b = 33 + 25, 66 + 25  # below the image and the gaps
    np.testing.assert_array_equal(picture[row_a, 90], colors[0])
    np.testing.assert_array_equal(picture[row_a, 106 + 90], colors[1])
    np.testing.assert_array_equal(picture[row_b, 90], colors[2])
    np.testing.assert_array_equal(picture[row_b, 106 + 90], [255, 255, 255])  # b has no such level
    np.testing.assert_array_equal(picture[25, 90], IMAGE[0, 0])


def test_a_transparent_map_lets_the_image_through_in_grey():
    picture = grid({"a": LEVELS}, opacity=0.75)
    color = heat_map(np.ones((1, 1)), 0.0, 1.0)[0, 0]
    np.testing.assert_allclose(picture[25, 90], 0.75 * color + 0.25 * 200, atol=1)


def test_boxes_are_outlined_also_at_the_border():
    picture = grid({"a": LEVELS}, boxes2d=np.array([[60.0, 20, 100, 30]]))[33:63]
    assert (picture[20, 60:99] == 255).all()
    assert (picture[29, 60:99] == 255).all()
    assert (picture[20:30, 99] == 255).all()
    assert not (picture[25, 61:99] == 255).all(axis=-1).any()


@pytest.mark.parametrize("rows", [{}, {"a": {}}, {"a": {4: np.zeros((8, 32))}}])
def test_nothing_to_draw_and_levels_without_scale_are_errors(rows):
    with pytest.raises(ValueError, match="colour scales for"):
        grid(rows)
