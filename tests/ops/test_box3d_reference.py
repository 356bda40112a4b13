"""The plain forms against shapely, and the compiled ones against the plain."""

import numpy as np
import pytest
import shapely
import torch
from torch import Tensor

from bevkd2.ops import batched_rotated_nms, box3d_iou, rotated_intersection, rotated_iou
from tests.ops.box_inputs import random_boxes
from tests.ops.references import (
    box3d_iou_reference,
    rotated_intersection_reference,
    rotated_iou_reference,
    rotated_nms_reference,
)
from tests.ops.test_box3d import polygon


def polygons(boxes: Tensor) -> np.ndarray:
    return np.array([polygon(row) for row in boxes])


def slender_boxes(n: int, seed: int) -> Tensor:
    """From a hair's breadth to longer than the scene; some are parallel to others."""
    boxes = random_boxes(n, seed, extent=6)
    generator = torch.Generator().manual_seed(seed)
    boxes[:, 2:4] = 10 ** (torch.rand((n, 2), generator=generator, dtype=torch.float64) * 4 - 3)
    boxes[::3, 4] = boxes[0, 4]
    boxes[1::3, 4] = boxes[0, 4] + torch.pi / 2
    return boxes


@pytest.mark.parametrize("make", [random_boxes, slender_boxes])
def test_all_pairs_agree_with_shapely(make) -> None:
    a, b = make(90, 0), make(70, 1)
    shared = shapely.intersection(polygons(a)[:, None], polygons(b)[None])
    expected = torch.from_numpy(shapely.area(shared))
    torch.testing.assert_close(rotated_intersection(a, b), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rotated_intersection_reference(a, b), expected, rtol=1e-6, atol=1e-7)


def test_overlaps_are_the_references() -> None:
    a, b = random_boxes(60, 2), random_boxes(50, 3)
    torch.testing.assert_close(rotated_intersection(a, b), rotated_intersection_reference(a, b))
    torch.testing.assert_close(rotated_iou(a, b), rotated_iou_reference(a, b))
    a, b = random_boxes(60, 2, 7), random_boxes(50, 3, 7)
    torch.testing.assert_close(box3d_iou(a, b), box3d_iou_reference(a, b))
    assert float((box3d_iou(a, b) > 0).double().mean()) > 0.05


@pytest.mark.parametrize("extent", [4.0, 30.0, 300.0])
@pytest.mark.parametrize(("threshold", "inclusive"), [(0.0, False), (0.3, True)])
def test_suppression_is_the_reference(extent: float, threshold: float, inclusive: bool) -> None:
    """More boxes than a block and a cell hold, from all in a heap to hardly any overlap; scores tie."""
    boxes, generator = random_boxes(250, 4, extent=extent), torch.Generator().manual_seed(0)
    scores = torch.randint(0, 50, (250,), generator=generator) / 50
    labels = torch.randint(-1, 2, (250,), generator=generator)
    kept = batched_rotated_nms(boxes, scores, labels, threshold, inclusive)
    expected = rotated_nms_reference(boxes, scores, labels, threshold, inclusive)
    assert kept.tolist() == expected.tolist()


def test_suppression_at_an_inclusive_zero_leaves_one_of_each_label() -> None:
    boxes, labels = random_boxes(300, 5, extent=1e4), torch.arange(300) % 3
    kept = batched_rotated_nms(boxes, torch.linspace(1, 0, 300), labels, 0.0, inclusive=True)
    assert kept.tolist() == [0, 1, 2]
