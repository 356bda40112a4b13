import numpy as np
import pytest
import torch

from bevkd2.structures import Boxes3D
from bevkd2.visualization import CLASS_COLORS, DrawnObjects

RECORD = {
    "boxes": Boxes3D(torch.tensor([[1.0, 2, 0, 4, 2, 1, 0, 0, 0], [5.0, 6, 0, 4, 2, 1, 0, 0, 0]])),
    "labels": torch.tensor([3, 8]),
    "scores": torch.tensor([0.2, 0.7]),
}


def test_predictions_below_the_threshold_are_dropped():
    objects = DrawnObjects.from_dict(RECORD).above(0.5)
    assert objects.labels.tolist() == [8]
    assert objects.boxes.center[0].tolist() == [5, 6, 0]
    assert objects.color(0) == tuple(CLASS_COLORS[8])


def test_annotations_have_no_scores_and_are_all_kept():
    objects = DrawnObjects.from_dict({k: v for k, v in RECORD.items() if k != "scores"})
    assert objects.scores is None
    assert len(objects.above(0.99)) == 2


def test_a_sample_without_boxes_has_no_objects():
    assert len(DrawnObjects.from_dict({"images": None})) == 0


def test_counts_must_agree():
    with pytest.raises(ValueError, match="2 boxes with 1 labels"):
        DrawnObjects(RECORD["boxes"], np.zeros(1, dtype=np.int64))
    with pytest.raises(ValueError, match="2 boxes with 3 scores"):
        DrawnObjects(RECORD["boxes"], np.zeros(2, dtype=np.int64), np.zeros(3))


def test_classes_have_colors_of_their_own():
    assert len(np.unique(CLASS_COLORS, axis=0)) == 10
