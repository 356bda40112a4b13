import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bevkd2.structures import Boxes3D, project_points
from bevkd2.visualization import DrawnObjects, draw_boxes, mosaic, project_edges
from bevkd2.visualization.camera_view import MOSAIC, NEAR

# A camera at the origin that looks along +y of the lidar's frame (x right, z up), 100 x 60 pixels.
K = np.array([[50.0, 0, 50], [0, 50, 30], [0, 0, 1]])
LIDAR2IMG = np.eye(4)
LIDAR2IMG[:3, :3] = K @ np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
BLACK = np.zeros((60, 100, 3), dtype=np.uint8)


def objects(*boxes, labels=None):
    tensor = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 7)
    return DrawnObjects(Boxes3D(tensor), np.zeros(len(tensor), dtype=np.int64) if labels is None else labels)


def test_edges_of_a_box_in_front_are_its_projected_corners():
    item = objects([0.5, 10.0, -0.3, 4.0, 2.0, 1.5, 0.4])
    segments, visible = project_edges(item.corners(), LIDAR2IMG)
    expected, _ = project_points(item.boxes.corners(), torch.from_numpy(LIDAR2IMG))
    assert visible.all()
    np.testing.assert_allclose(segments[0, 0], expected[0, [0, 1]], atol=1e-9)
    np.testing.assert_allclose(segments[0, 8], expected[0, [0, 4]], atol=1e-9)


def test_the_first_four_edges_are_the_front():
    """The box faces the camera: its front, at y = 8, is nearer than its rear and so larger in the image."""
    item = objects([0.0, 10.0, 0.0, 4.0, 2.0, 1.5, -math.pi / 2])
    segments, _ = project_edges(item.corners(), LIDAR2IMG)
    front, rear = (np.ptp(segments[0, rows, :, 0]) for rows in (slice(0, 4), slice(4, 8)))
    assert front == pytest.approx(50 * 2 / 8)
    assert rear == pytest.approx(50 * 2 / 12)


@given(st.floats(-6, 6), st.floats(-6, 6), st.floats(-3.1, 3.1))
def test_cut_edges_end_at_the_near_plane(x, y, yaw):
    """Every drawn end point, taken back to space along its edge, is at or beyond the plane."""
    item = objects([x, y, -0.5, 5.0, 2.0, 1.5, yaw])
    segments, visible = project_edges(item.corners(), LIDAR2IMG)
    depth = item.corners()[0, :, 1]
    assert visible.any() == (depth > NEAR).any()
    assert np.isfinite(segments).all()
    # |u - cx| = f |x| / depth <= f * 9 / NEAR for all points beyond the plane
    assert np.abs(segments[visible][..., 0] - 50).max(initial=0) <= 50 * 9 / NEAR + 1e-6


def test_an_edge_through_the_plane_is_cut_where_it_meets_it():
    item = objects([2.0, 0.0, 0.0, 8.0, 2.0, 1.0, math.pi / 2])  # from y = -4 to y = 4, beside the camera
    segments, visible = project_edges(item.corners(), LIDAR2IMG)
    assert visible[0].tolist() == [True] * 4 + [False] * 4 + [True] * 4
    # The side edge at x = 3, z = 0.5 is cut at depth NEAR.
    ends = segments[0, 8:].reshape(-1, 2)
    assert np.abs(ends[:, 0] - (50 + 50 * 3 / NEAR)).min() < 1e-6


def test_a_box_behind_the_camera_is_not_drawn():
    assert (draw_boxes(BLACK, objects([0.0, -10, 0, 4, 2, 1.5, 0]), LIDAR2IMG) == 0).all()


def test_a_box_is_drawn_in_its_class_color_inside_its_extent():
    item = objects([0.0, 10, 0, 4, 2, 2, 0.0], labels=np.array([3]))
    image = draw_boxes(BLACK, item, LIDAR2IMG)
    rows, columns = np.nonzero(image.sum(axis=-1))
    # The nearest face is 9 m away: half a width of 2 m and half a height of 1 m.
    assert columns.min() == pytest.approx(50 - 50 * 2 / 9, abs=3)
    assert columns.max() == pytest.approx(50 + 50 * 2 / 9, abs=3)
    assert rows.min() == pytest.approx(30 - 50 * 1 / 9, abs=3)
    assert rows.max() == pytest.approx(30 + 50 * 1 / 9, abs=3)
    red, green, blue = item.color(0)
    np.testing.assert_allclose(image.reshape(-1, 3).max(axis=0), [red, green, blue], atol=3)


def test_lines_scale_with_the_image():
    item = objects([0.0, 10, 0, 4, 2, 2, 0.0])
    image = draw_boxes(BLACK, item, LIDAR2IMG, scale=3.0)
    assert image.shape == (180, 300, 3)
    columns = np.nonzero(image.sum(axis=-1))[1]
    assert columns.min() == pytest.approx(3 * (50 - 50 * 2 / 9), abs=3)


def test_the_given_image_is_not_changed():
    image = BLACK.copy()
    draw_boxes(image, objects([0.0, 10, 0, 4, 2, 2, 0.0]), LIDAR2IMG)
    assert (image == 0).all()


def test_mosaic_places_the_cameras():
    images = {name: np.full((40, 100, 3), 20 + 30 * i, np.uint8) for i, name in enumerate(sum(MOSAIC, ()))}
    picture = mosaic(images)
    assert picture.shape == (82, 304, 3)
    centers = [picture[35 + 42 * row, 90 + 102 * column, 0] for row in range(2) for column in range(3)]
    assert centers == [20, 50, 80, 110, 140, 170]


def test_mosaic_leaves_a_missing_camera_black_and_appends_unknown_ones():
    images = {
        "CAM_FRONT": np.full((40, 100, 3), 90, np.uint8),
        "CAM_ROOF": np.full((40, 100, 3), 60, np.uint8),
    }
    picture = mosaic(images)
    assert picture.shape == (82, 304, 3)
    assert picture[35, 90, 0] == 0
    assert picture[35, 192, 0] == 90
    assert picture[77, 90, 0] == 60
