"""Which objects are found, and how it is drawn."""

import numpy as np
import pytest
import torch

from bevkd2.structures import Boxes3D
from bevkd2.visualization import BEVFrame, DrawnObjects, draw_found, found_objects


def objects(places, labels, scores=None):
    boxes = torch.tensor([[x, y, 0.0, 4.0, 2.0, 1.5, 0.0] for x, y in places], dtype=torch.float64)
    return DrawnObjects(
        Boxes3D(boxes.reshape(-1, 7)),
        np.array(labels, dtype=np.int64),
        None if scores is None else np.array(scores),
    )


TRUTH = objects([(0, 10), (8, 0), (-8, 0)], [0, 0, 1])


def test_an_object_is_found_once_by_the_best_detection_of_its_class_that_is_near():
    detections = objects(
        [(0.5, 10), (0, 10), (8, 1.9), (-8, 0), (8, 0)], [0, 0, 0, 0, 0], [0.9, 0.8, 0.7, 0.9, 0.2]
    )
    found, right = found_objects(TRUTH, detections, score_threshold=0.3)
    assert found.tolist() == [True, True, False]  # the third is of another class
    assert right.tolist() == [True, False, True, False, False]
    found, _ = found_objects(TRUTH, detections, score_threshold=0.3, distance=1.0)
    assert found.tolist() == [True, False, False]


@pytest.mark.parametrize(("truth", "detections"), [(TRUTH, objects([], [], [])), (objects([], []), TRUTH)])
def test_nothing_is_found_where_there_is_nothing(truth, detections):
    found, right = found_objects(truth, detections, score_threshold=0.3)
    assert (len(found), len(right)) == (len(truth), len(detections)) and not found.any() and not right.any()


def test_found_objects_are_green_and_missed_ones_red():
    frame = BEVFrame((-16, -16, 16, 16), 320)
    one = objects([(0, 10)], [0], [0.9])
    picture = draw_found(frame, TRUTH, {"a": one, "b": objects([], [], [])}, score_threshold=0.3)
    left, right = picture[-320:, :320].astype(int), picture[-320:, -320:].astype(int)
    center, other = (320 - (10 + 16) * 10, 160), (160, (8 + 16) * 10)

    def green(view, at):
        return view[at][1] > view[at][0] + 40

    assert green(left, center) and not green(left, other)
    assert not green(right, center) and right[center][0] > right[center][1] + 40
