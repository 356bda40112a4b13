"""DeFeat's masks, weights and class predictions; its losses are held to recordings in tests/golden."""

from __future__ import annotations

import pytest
import torch

from tests.distill.methods.harness import build_pair, distill_losses, make_batch
from tests.distill.methods.random_maps import build, knowledge, targets


def value(boxes: list[list[float]], **settings: float) -> float:
    method = build("DeFeat", HEAD="off", ADAPTER="conv1x1", **settings)
    return method(knowledge(4, 1), knowledge(6, 2), targets(2, boxes))["defeat_features"].item()


def test_foreground_and_background_are_apart() -> None:
    box = [[9.0, 5.0, 40.0, 30.0]]
    only_foreground = value(box, BACKGROUND_WEIGHT=0.0)
    only_background = value(box, FOREGROUND_WEIGHT=0.0)
    assert only_foreground > 0 and only_background > 0
    assert value(box) == pytest.approx(only_foreground + only_background, rel=1e-6)
    assert value(box, FOREGROUND_WEIGHT=6.0, BACKGROUND_WEIGHT=0.0) == pytest.approx(2 * only_foreground)
    assert value([], BACKGROUND_WEIGHT=0.0) == 0


def test_a_small_object_is_on_the_fine_level_alone() -> None:
    method = build("DeFeat", HEAD="off", BACKGROUND_WEIGHT=0.0)
    student = knowledge(4, 1)
    method(student, knowledge(6, 2), targets())["defeat_features"].backward()
    assert [bool(level.grad.abs().max() > 0) for level in student.fpn] == [True, False]


@pytest.mark.parametrize("distance", ["kl", "softmax_kl"])
def test_class_predictions_are_compared_where_there_are_objects_and_elsewhere(distance: str) -> None:
    settings = {"CLASS_DISTANCE": distance, "TEMPERATURE": 2.0}
    model, batch = build_pair("PGD", "DeFeat", **settings), make_batch("PGD", 1, 2)
    found = distill_losses(model, batch)["loss_distill_defeat_head"].item()
    inputs = model.student.preprocess(batch)
    with torch.no_grad():
        ours = model.student.train().extract(inputs).logits.double() / 2
        theirs = model.teacher.extract(inputs).logits.double() / 2
    assigned = model.student.targets(batch, inputs).assignment()
    sums, counts = [0.0, 0.0], [0, 0]
    for row in range(2):
        for location in range(ours.shape[1]):
            group = int(assigned[row, location] < 0)
            counts[group] += 1
            if distance == "softmax_kl":
                p, q = theirs[row, location].softmax(0), ours[row, location].softmax(0)
                sums[group] += float((p * (p / q).log()).sum())
            else:
                p, q = theirs[row, location].sigmoid(), ours[row, location].sigmoid()
                sums[group] += float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum())
    expected = sum(2 * 4 * total / count for total, count in zip(sums, counts, strict=True))
    assert found == pytest.approx(expected, rel=1e-4)


def test_detectors_of_object_queries_compare_features_alone() -> None:
    assert set(distill_losses(build_pair("BEVFormer", "DeFeat"), make_batch("BEVFormer", 1))) == {
        "loss_distill_defeat_features"
    }
    with pytest.raises(ValueError, match=r"DISTILL\.DEFEAT\.HEAD: on"):
        build_pair("BEVFormer", "DeFeat", HEAD="on")
