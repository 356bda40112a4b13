import numpy as np
import pytest
import torch

from bevkd2.structures import Boxes3D
from bevkd2.visualization import DrawnObjects
from bevkd2.visualization.bev_view import BEVFrame
from bevkd2.visualization.temporal_view import TemporalAttentionView

SHAPE, EXTENT = (2, 4), (-8.0, -2.0, 8.0, 2.0)  # cells of 4 m times 2 m
NOTHING = DrawnObjects(Boxes3D.empty(), np.zeros(0, dtype=np.int64))


def view(offset=(0.0, 0.0), has_history=True):
    """One head and one point; the previous BEV is sampled at the offset, the current one at the cell."""
    offsets = np.zeros((8, 1, 2, 1, 2))
    offsets[:, 0, 0, 0] = offset
    return TemporalAttentionView(offsets, np.ones((8, 1, 2, 1)), has_history)


def test_points_are_on_the_ground_around_the_cell():
    places, weights = view(offset=(1.0, -0.5)).points(6, SHAPE, EXTENT)  # the second row, the third column
    np.testing.assert_allclose(places, [[[6.0, 0.0]], [[2.0, 1.0]]])
    assert weights.tolist() == [[1.0], [1.0]]


def test_a_point_is_drawn_where_it_is_sampled():
    frame = BEVFrame(EXTENT, 80)
    moved, still = (
        view(offset).draw(6, SHAPE, frame, NOTHING, NOTHING) for offset in ((-1.0, 0.0), (0.0, 0.0))
    )
    width, title = frame.shape[1], moved.shape[0] - frame.shape[0]
    previous = (moved != still).any(axis=2)
    assert previous[:, :width].any() and not previous[:, width:].any()  # the current BEV is the same
    rows, columns = np.nonzero(previous)
    x, y = frame.to_pixels(np.array([[-2.0, 1.0], [2.0, 1.0]])).T
    assert abs(rows.mean() - title - y.mean()) < 2 and columns.min() == pytest.approx(x.min(), abs=8)


def test_a_first_frame_says_that_there_is_no_previous_bev():
    frame = BEVFrame(EXTENT, 80)
    first, later = (view(has_history=past).draw(6, SHAPE, frame, NOTHING, NOTHING) for past in (False, True))
    assert (first != later).any()
    assert torch.equal(torch.from_numpy(first[-40:]), torch.from_numpy(later[-40:]))  # but the caption
