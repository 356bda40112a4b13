"""Panels of several models: colours say what is found, far, missed and false."""

import numpy as np
import pytest
import torch

from bevkd2.structures import Boxes3D
from bevkd2.structures.matches import FALSE, FAR, FOUND, IGNORED, MISSED, FrameMatches
from bevkd2.visualization import DrawnObjects, class_palette
from bevkd2.visualization.bev_view import BEVFrame
from bevkd2.visualization.comparison_view import (
    FALSE_COLOR,
    STATE_COLORS,
    FrameView,
    comparison_figure,
    detection_panel,
    match_panel,
)

WIDTH, HEIGHT = 160, 96
CAM2IMG = np.array([[80.0, 0, 80, 0], [0, 80.0, 48, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
EXTENT = (-16.0, -2.0, 16.0, 30.0)
PLACES = [(-6.0, 12.0), (0.0, 12.0), (6.0, 12.0), (0.0, 24.0)]


def objects(places, scores=None):
    boxes = torch.tensor([[x, y, 0.0, 2.0, 4.0, 1.5, 0.0] for x, y in places], dtype=torch.float64)
    labels = np.zeros(len(places), dtype=np.int64)
    return DrawnObjects(Boxes3D(boxes.reshape(-1, 7)), labels, None if scores is None else np.array(scores))


def view(monocular=True):
    image = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)
    forward = CAM2IMG @ np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    matrix = CAM2IMG if monocular else forward
    cameras = ("camera",) if monocular else ("CAM_FRONT", "CAM_BACK")
    return FrameView(dict.fromkeys(cameras, image), dict.fromkeys(cameras, matrix), EXTENT, monocular)


def matches(states, detections):
    return FrameMatches(
        np.zeros(len(states), np.int64),
        np.array(states, dtype=np.int64),
        np.zeros(len(states)),
        np.zeros(len(detections), np.int64),
        np.array(detections, dtype=np.int64),
    )


def holds(picture, color, tolerance=12):
    return int((abs(picture.astype(int) - np.array(color)) <= tolerance).all(axis=-1).sum())


@pytest.mark.parametrize("monocular", [True, False])
def test_every_state_has_its_color_in_camera_and_from_above(monocular):
    truth, found = objects(PLACES), objects([(-6, 12), (1, 13), (8, 20)], [0.9, 0.8, 0.7])
    made = matches([FOUND, FAR, MISSED, IGNORED], [FOUND, FAR, FALSE])
    panel = match_panel(view(monocular), truth, found, made, caption="m", width=480, marked=[2])
    assert panel.shape[1] == 480
    camera_rows = 480 * HEIGHT // WIDTH if monocular else 100
    cameras, below = panel[24 : 24 + camera_rows], panel[24 + camera_rows :]
    for color in (*STATE_COLORS[:3], FALSE_COLOR):
        assert holds(cameras, color) > 20, color
        assert holds(below, color) > 20, color
    assert holds(below, (0, 0, 0)) > 50  # the ring about the object that was lost
    plain = match_panel(view(monocular), truth, found, made, caption="m", width=480)
    assert holds(plain[24 + camera_rows :], (0, 0, 0)) < holds(below, (0, 0, 0)) - 50


def test_an_object_lies_where_it_is():
    made = matches([MISSED], [])
    panel = match_panel(view(False), objects([(6, 12)]), objects([], []), made, caption="m", width=480)
    frame = BEVFrame(EXTENT, 480)
    x, y = np.rint(frame.to_pixels(np.array([6.0, 12.0]))).astype(int)
    end = -6 - 58  # a gap, and the legend: three rows of 18 pixels and a border
    r, g, b = panel[end - 480 : end][y, x].astype(int)
    assert r > g + 40 and r > b + 40


@pytest.mark.parametrize("monocular", [True, False])
def test_detections_have_the_color_of_their_class_and_the_best_is_on_top(monocular):
    low = objects([(0, 12)], [0.4])
    high = objects([(0, 12)], [0.9])
    both = DrawnObjects(Boxes3D.cat([high.boxes, low.boxes]), np.array([1, 0]), np.array([0.9, 0.4]))
    settings = {"caption": "m", "class_names": ("car", "bus"), "score_threshold": 0.3, "width": 480}
    panel = detection_panel(view(monocular), objects([]), both, **settings)
    none = detection_panel(view(monocular), objects([]), both, **{**settings, "score_threshold": 0.95})
    car, bus = class_palette(2)
    assert holds(panel, bus) > holds(none, bus) + 200
    assert holds(panel, bus) > holds(panel, car) + 100 or not monocular


def test_panels_stand_side_by_side():
    panel = np.zeros((50, 400, 3), np.uint8)
    assert comparison_figure([panel, panel], "title").shape[1] == 806
