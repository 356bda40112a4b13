import numpy as np
import pytest
import torch

from bevkd2.structures import Boxes3D
from bevkd2.visualization import BEVFrame, DrawnObjects, bev_response, draw_bev_responses, draw_cells

FRAME = BEVFrame((-10.0, -10.0, 10.0, 10.0), 100)


def test_response_is_the_mean_absolute_value_over_channels():
    embed = np.array([[1.0, -3.0], [0, 0], [2, 2], [-1, 0], [4, -4], [0, 1]])
    np.testing.assert_allclose(bev_response(embed, (2, 3)), [[2, 0, 2], [0.5, 4, 0.5]])


def test_response_equals_what_the_distillation_loss_compares():
    from bevkd2.ops import bev_response_l2

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(12, 5)), rng.normal(size=(12, 7))
    ours = np.linalg.norm(bev_response(a, (3, 4)) - bev_response(b, (3, 4)))
    tensors = [torch.from_numpy(x).float()[None] for x in (a, b)]
    mask = torch.ones(1, 12, dtype=torch.bool)
    assert float(bev_response_l2(*tensors, mask, reduction="norm")) == pytest.approx(ours, rel=1e-5)


def test_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match="6 cells, expected 2 x 2"):
        bev_response(np.zeros((6, 2)), (2, 2))


def test_the_first_row_is_at_the_bottom_and_the_first_column_on_the_left():
    values = np.zeros((10, 10))
    values[0, 9] = 1.0  # the least y, the greatest x
    picture = draw_cells(values, FRAME, 0.0, 1.0).sum(axis=-1)
    rows, columns = np.nonzero(picture == picture.max())
    assert (rows.min(), rows.max()) == (90, 99)
    assert (columns.min(), columns.max()) == (90, 99)


def test_unknown_cells_are_grey():
    values = np.full((10, 10), np.nan)
    assert (draw_cells(values, FRAME) == 128).all()


def test_models_with_different_grids_are_drawn_side_by_side():
    picture = draw_bev_responses({"teacher": np.ones((10, 10)), "student": np.ones((5, 5))}, FRAME)
    assert picture.shape == (100, 206, 3)


def test_a_shared_scale_keeps_levels_comparable():
    weak, strong = np.linspace(0, 1, 100).reshape(10, 10), np.linspace(0, 10, 100).reshape(10, 10)
    own = draw_bev_responses({"a": weak, "b": strong}, FRAME)
    shared = draw_bev_responses({"a": weak, "b": strong}, FRAME, shared_scale=True)
    below_the_names = slice(30, None)
    assert (own[below_the_names, :100] == own[below_the_names, 106:]).all()
    assert shared[:, :100].mean() < shared[:, 106:].mean()


def test_objects_are_outlined_in_every_panel():
    boxes = Boxes3D(torch.tensor([[0.0, -5.0, 0.0, 4.0, 4.0, 1.0, 0.0]]))
    picture = draw_bev_responses(
        {"a": np.zeros((10, 10)), "b": np.zeros((10, 10))}, FRAME, DrawnObjects(boxes, np.array([0]))
    )
    for left in (0, 106):
        assert picture[30:, left : left + 100].max() > 240
