"""The generalised IoU that ties a predicted 2D box to the projected 3D box."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import generalized_box_iou_loss

from bevkd2.modeling.mono.fcos3d.consistency import generalized_iou

_corner = st.integers(0, 60)
_side = st.integers(1, 40)
_box = st.tuples(_corner, _corner, _side, _side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


@given(_box, _box)
def test_it_is_torchvisions_where_boxes_have_an_area(a: list[int], b: list[int]):
    first, second = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    expected = 1 - generalized_box_iou_loss(first, second)
    torch.testing.assert_close(generalized_iou(first, second), expected, rtol=0, atol=1e-6)


def test_a_box_without_height_learns_to_grow():
    flat = torch.tensor([[10.0, 20.0, 30.0, 20.0]], requires_grad=True)
    generalized_iou(torch.tensor([[10.0, 10.0, 30.0, 30.0]]), flat).sum().backward()
    assert float(flat.grad[0, 1]) < 0 < float(flat.grad[0, 3])


def test_two_points_are_finite():
    point = torch.full((1, 4), 5.0, requires_grad=True)
    generalized_iou(point, torch.full((1, 4), 5.0)).sum().backward()
    assert bool(point.grad.isfinite().all())
