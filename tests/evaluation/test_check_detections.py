import numpy as np
import pytest
import torch

from bevkd2.evaluation.check_detections import check_finite, check_labels
from bevkd2.structures import Boxes3D


def test_numbers_must_be_finite():
    check_finite(Boxes3D.empty(), np.zeros(0), "image 'a'")
    boxes = Boxes3D(torch.ones(2, 7))
    check_finite(boxes, np.array([0.1, 0.9]), "image 'a'")
    with pytest.raises(ValueError, match="detections of image 'a' contain NaN or infinity"):
        check_finite(boxes, np.array([0.1, np.nan]), "image 'a'")
    boxes.tensor[1, 6] = torch.inf
    with pytest.raises(ValueError, match="contain NaN or infinity"):
        check_finite(boxes, np.zeros(2), "image 'a'")


@pytest.mark.parametrize("labels", [[0, 3], [2, -1]])
def test_labels_must_be_classes(labels: list[int]):
    check_labels(np.zeros(0, dtype=np.int64), 3, "image 'a'")
    check_labels(np.array([0, 2, 1]), 3, "image 'a'")
    with pytest.raises(ValueError, match=rf"label {labels[1]}, expected 0 to 2.*DATASETS\.CLASSES"):
        check_labels(np.array(labels), 3, "image 'a'")
