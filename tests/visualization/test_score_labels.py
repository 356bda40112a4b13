import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from bevkd2.structures import Boxes3D
from bevkd2.visualization.objects import DrawnObjects
from bevkd2.visualization.score_labels import draw_scores, place_labels

SHAPE = (120, 300)
# A camera at the origin that looks along +y.
MATRIX = np.array([[100.0, 150, 0, 0], [0, 60, -100, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


def overlap(a, b, size):
    return abs(a[0] - b[0]) < size[0] and abs(a[1] - b[1]) < size[1]


@given(st.lists(st.tuples(st.integers(0, 299), st.integers(0, 119)), max_size=12))
def test_labels_stay_in_the_picture_and_do_not_overlap(anchors):
    size = (26, 14)  # seven rows of labels fit, so there is always a free place for up to three in a column
    places = place_labels(anchors, [size] * len(anchors), SHAPE)
    for x, y in places:
        assert 0 <= x <= SHAPE[1] - size[0]
        assert 0 <= y <= SHAPE[0] - size[1]
    if len(places) <= 3:
        pairs = [(a, b) for i, a in enumerate(places) for b in places[:i]]
        assert not any(overlap(a, b, size) for a, b in pairs)


def test_the_first_label_is_at_its_anchor_and_the_next_above_it():
    assert place_labels([(50, 60), (50, 60)], [(26, 14)] * 2, SHAPE) == [(50, 46), (50, 32)]


def test_at_the_upper_border_a_label_goes_below():
    assert place_labels([(50, 5), (50, 5)], [(26, 14)] * 2, SHAPE) == [(50, 0), (50, 14)]


def test_a_full_picture_puts_the_label_at_its_anchor():
    assert place_labels([(0, 14)] * 3, [(26, 14)] * 3, (28, 26))[2] == (0, 0)


def test_objects_outside_the_image_get_no_label():
    boxes = [[0.0, 10, 0, 4, 2, 2, 0], [0.0, -10, 0, 4, 2, 2, 0], [300.0, 10, 0, 4, 2, 2, 0]]
    items = DrawnObjects(Boxes3D(torch.tensor(boxes)), np.array([6, 0, 3]), np.array([0.5, 0.9, 0.8]))
    canvas = np.zeros((*SHAPE, 3), dtype=np.uint8)
    draw_scores(canvas, items, MATRIX)
    shown = {tuple(c) for c in canvas.reshape(-1, 3).tolist()}
    assert items.color(0) in shown
    assert not {items.color(1), items.color(2)} & shown


def test_annotations_get_no_label():
    canvas = np.zeros((*SHAPE, 3), dtype=np.uint8)
    draw_scores(
        canvas, DrawnObjects(Boxes3D(torch.tensor([[0.0, 10, 0, 4, 2, 2, 0]])), np.array([0])), MATRIX
    )
    assert not canvas.any()
