import math

import numpy as np
import pytest
import torch

from bevkd2.structures import Boxes3D
from bevkd2.visualization import CLASS_COLORS, BEVFrame, DrawnObjects, draw_bev
from bevkd2.visualization.bev_view import legend

FRAME = BEVFrame((-20.0, -10.0, 20.0, 30.0), 400)


def car(x, y, yaw=0.0, speed=0.0, score=None, label=4):
    velocity = (speed * math.cos(yaw), speed * math.sin(yaw))
    boxes = Boxes3D(torch.tensor([[x, y, 0, 4.0, 2.0, 1.5, yaw, *velocity]], dtype=torch.float64))
    return DrawnObjects(boxes, np.array([label]), None if score is None else np.array([score]))


def changed(**kwargs):
    """(rows, columns) of pixels that the objects change."""
    return np.nonzero((draw_bev(FRAME, **kwargs) != draw_bev(FRAME)).any(axis=-1))


def test_x_is_to_the_right_and_y_is_up():
    np.testing.assert_allclose(
        FRAME.to_pixels(np.array([[-20.0, 30.0], [20, -10], [0, 0]])), [[0, 0], [400, 400], [200, 300]]
    )


def test_the_frame_follows_its_extent():
    assert BEVFrame((0.0, 0.0, 20.0, 10.0), 100).shape == (100, 200)
    with pytest.raises(ValueError, match="expected x0 < x1"):
        BEVFrame((1.0, 0.0, 0.0, 1.0))


def test_ground_truth_boxes_are_filled():
    rows, columns = changed(truth=car(10.0, 20.0))
    assert rows.min() == pytest.approx(90, abs=3)
    assert rows.max() == pytest.approx(110, abs=3)
    assert columns.min() == pytest.approx(280, abs=3)
    assert columns.max() == pytest.approx(320, abs=3)
    inner = draw_bev(FRAME, truth=car(10.0, 20.0))[100, 300].astype(float)
    np.testing.assert_allclose(inner, 0.45 * CLASS_COLORS[4] + 0.55 * 255, atol=6)


def test_a_prediction_is_an_outline():
    picture = draw_bev(FRAME, predictions=car(10.0, 15.0, score=0.9))
    blank = draw_bev(FRAME)
    assert (picture[150, 300] == blank[150, 300]).all()
    np.testing.assert_allclose(picture[140, 300], CLASS_COLORS[4], atol=40)


def test_a_prediction_of_high_score_is_drawn_thicker():
    sure, unsure = (len(changed(predictions=car(10.0, 15.0, score=s))[0]) for s in (0.9, 0.3))
    assert sure > 1.3 * unsure


@pytest.mark.parametrize(("yaw", "side"), [(0.0, 1), (math.pi, -1)])
def test_the_front_is_marked(yaw, side):
    _, columns = changed(predictions=car(10.0, 15.0, yaw=yaw, score=0.9))
    weight = np.sign(columns - 300.0).sum()
    assert weight * side > 0


def test_the_arrow_points_where_the_object_is_in_a_second():
    _, columns = changed(truth=car(0.0, 20.0, speed=10.0))
    assert columns.max() == pytest.approx(300, abs=3)
    _, columns = changed(truth=car(0.0, 20.0, speed=0.0))
    assert columns.max() == pytest.approx(220, abs=3)


def test_an_unknown_velocity_gets_no_arrow():
    unknown = car(0.0, 20.0)
    unknown.boxes.tensor[:, 7:] = math.nan
    assert len(changed(truth=unknown)[0]) == len(changed(truth=car(0.0, 20.0))[0])


def test_a_base_is_the_background_and_is_not_changed():
    base = np.full((400, 400, 3), 7, dtype=np.uint8)
    picture = draw_bev(FRAME, truth=car(10.0, 20.0), base=base)
    assert (picture[0, 0] == 7).all()
    assert (base == 7).all()
    with pytest.raises(ValueError, match=r"base is \(10, 10\)"):
        draw_bev(FRAME, base=np.zeros((10, 10, 3), np.uint8))


def test_the_legend_shows_every_color():
    picture = legend(tuple("abcdefghij"), CLASS_COLORS, 400)
    shown = {tuple(c) for c in picture.reshape(-1, 3).tolist()}
    assert {tuple(c) for c in CLASS_COLORS.tolist()} <= shown
