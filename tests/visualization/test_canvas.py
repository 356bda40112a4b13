import cv2
import numpy as np
import pytest

from bevkd2.visualization.canvas import heat_map, put_text, resize, save_image, stack, with_title


def solid(height, width, value):
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_stack_pads_the_smaller_ones():
    image = stack([solid(4, 3, 10), solid(2, 5, 20)], axis=1, gap=2)
    assert image.shape == (4, 10, 3)
    assert (image[:, :3] == 10).all()
    assert (image[:, 3:5] == 255).all()
    assert (image[:2, 5:] == 20).all()
    assert (image[2:, 5:] == 255).all()
    assert stack([solid(4, 3, 10), solid(2, 5, 20)], axis=0, gap=1).shape == (7, 5, 3)


def test_a_long_title_widens_the_picture():
    image = with_title(solid(10, 20, 0), "a title much longer than twenty pixels")
    assert image.shape[1] > 200
    assert (image[:-10] < 100).any()


def test_heat_map_orders_values_and_greys_the_unknown():
    image = heat_map(np.array([[0.0, 0.5, 1.0, np.nan, 9.0]]), 0.0, 1.0)
    brightness = image[0].sum(axis=-1).tolist()
    assert brightness[0] < brightness[1] < brightness[2] == brightness[4]
    assert image[0, 3].tolist() == [128, 128, 128]


def test_heat_map_of_a_constant_is_dark():
    constant = heat_map(np.full((2, 2), 3.0), 3.0, 3.0)
    assert (constant == heat_map(np.zeros((2, 2)), 0.0, 1.0)).all()


def test_resize_scales_both_sides():
    assert resize(solid(10, 20, 7), 2.5).shape == (25, 50, 3)
    assert resize(solid(10, 20, 7), 0.1).shape == (1, 2, 3)


def test_text_beyond_the_border_is_cut():
    image = solid(8, 8, 100)
    put_text(image, "long text", (2, 2))
    assert image.shape == (8, 8, 3)
    assert (image != 100).any()


def test_images_are_saved_in_rgb_and_their_folder_is_made(tmp_path):
    path = tmp_path / "a" / "b.png"
    save_image(path, solid(2, 2, 0) + np.array([255, 0, 0], dtype=np.uint8))
    assert cv2.imread(str(path))[0, 0].tolist() == [0, 0, 255]


def test_an_unknown_format_is_an_error(tmp_path):
    with pytest.raises((OSError, cv2.error)):
        save_image(tmp_path / "a.nonsense", solid(2, 2, 0))
