import numpy as np
import pytest
import torch

from bevkd2.evaluation.check_detections import check_detections, check_range
from bevkd2.structures import Boxes3D


def check(boxes, scores=(0.1, 0.9), labels=(0, 2)):
    check_detections(boxes, np.array(scores, dtype=float), np.array(labels, dtype=np.int64), 3, "image 'a'")


@pytest.fixture
def boxes() -> Boxes3D:
    return Boxes3D(torch.ones(2, 7))


def test_sound_detections_pass(boxes):
    check(boxes)
    check(Boxes3D.empty(), (), ())


def test_numbers_must_be_finite(boxes):
    with pytest.raises(ValueError, match="detections of image 'a' contain NaN or infinity"):
        check(boxes, (0.1, np.nan))
    boxes.tensor[1, 6] = torch.inf
    with pytest.raises(ValueError, match="contain NaN or infinity"):
        check(boxes)


@pytest.mark.parametrize("size", [0.0, -1.5])
@pytest.mark.parametrize("column", [3, 4, 5])
def test_sizes_must_be_above_zero(boxes, size: float, column: int):
    boxes.tensor[1, column] = size
    sides = ["1", "1", "1"]
    sides[column - 3] = f"{size:g}"
    with pytest.raises(ValueError, match=rf"image 'a' have a box .* height {', '.join(sides)} m, expected"):
        check(boxes)


@pytest.mark.parametrize("labels", [(0, 3), (2, -1)])
def test_labels_must_be_classes(boxes, labels):
    with pytest.raises(ValueError, match=rf"label {labels[1]}, expected 0 to 2.*DATASETS\.CLASSES"):
        check(boxes, labels=labels)


def test_there_must_be_as_many_of_each(boxes):
    with pytest.raises(ValueError, match="image 'a' are 2 boxes, 1 scores and 2 labels"):
        check(boxes, (0.1,))


@pytest.mark.parametrize("value", [-1, 9])
def test_values_must_be_in_range(value: int):
    check_range(np.array([0, 8]), 9, "image 'a'", "attribute", "so")
    with pytest.raises(ValueError, match=rf"image 'a' have the attribute {value}, expected 0 to 8: so"):
        check_range(np.array([0, value]), 9, "image 'a'", "attribute", "so")
