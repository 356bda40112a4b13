"""TAR against its formula with loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from bevkd2.distill import Progress
from bevkd2.structures import CameraBoxes3D
from tests.distill.methods.harness import build_pair, distill_losses, make_batch
from tests.distill.methods.random_maps import SHAPES, STRIDES, build, knowledge, targets

# One box for each level by its size: sqrt((w + 1) (h + 1)) below or above 2 * 14 * 8 pixels.
SMALL = [[9.0, 5.0, 40.0, 30.0], [3.0, 30.0, 12.0, 38.0]]


def naive_mask(boxes: list[list[float]], level: int) -> torch.Tensor:
    (rows, columns), stride = SHAPES[level], STRIDES[level]
    gaussian, inside = torch.zeros(rows, columns), torch.zeros(rows, columns)
    for x1, y1, x2, y2 in boxes:
        size = math.sqrt((x2 - x1 + 1) * (y2 - y1 + 1))
        if min(max(math.floor(math.log2(size / (14 * STRIDES[0]))), 0), 1) != level:
            continue
        left, top, right, bottom = (int(value / stride) for value in (x1, y1, x2, y2))
        if left == right or top == bottom:
            right, bottom = left + 1, top + 1
        center_x, center_y = (left + right) // 2, (top + bottom) // 2
        for row in range(rows):
            for column in range(columns):
                u, v = (column - center_x) / ((right - left) / 2), (row - center_y) / ((bottom - top) / 2)
                if u * u + v * v <= 9:
                    value = math.exp(-(u * u + v * v) / 2)
                    gaussian[row, column] = max(float(gaussian[row, column]), value)
                if left <= column < right and top <= row < bottom:
                    inside[row, column] = 1.0
    return gaussian * inside


def test_features_are_their_formula() -> None:
    method = build("TAR")
    student, teacher, objects = knowledge(4, 1), knowledge(6, 2), targets(2, SMALL)
    expected = 0.0
    for level, adapter in enumerate(method.adapters):
        masks = torch.stack([naive_mask(boxes.tolist(), level) for boxes in objects.boxes2d])
        squares = (adapter(student.fpn[level]) - teacher.fpn[level]).square()
        summed = sum((squares[:, c] * masks).sum().item() for c in range(6))
        expected += summed / (2 * 6 * max(1.0, masks.sum().item())) / 2
    assert expected > 0
    assert method(student, teacher, objects)["tar_features"].item() == pytest.approx(expected, rel=1e-5)


def test_large_objects_are_on_the_coarse_level() -> None:
    method = build("TAR")
    student, teacher = knowledge(4, 1, 1), knowledge(6, 2, 1)
    large = [[-100.0, -100.0, 160.0, 160.0]]
    method(student, teacher, targets(1, large))["tar_features"].backward()
    assert [bool(level.grad.abs().max() > 0) for level in student.fpn] == [False, True]


def test_features_fade_over_the_training() -> None:
    method, student, teacher = build("TAR", FEATURE_DECAY=0.5), knowledge(4, 1), knowledge(6, 2)
    losses = []
    for iteration in (0, 50, 75):
        method.progress = Progress(iteration, 100)
        losses.append(method(student, teacher, targets())["tar_features"].item())
    assert losses[1:] == pytest.approx([losses[0], losses[0] / 2])


def test_classes_and_boxes_are_their_formulas() -> None:
    model = build_pair("PGD", "TAR", CLASS_WEIGHT=2.0, BOX_WEIGHT=3.0)
    batch = make_batch("PGD", 1, 2)
    student, teacher = model.student, model.teacher
    losses = distill_losses(model, batch)
    inputs = student.preprocess(batch)
    objects = student.targets(batch, inputs)
    with torch.no_grad():
        wants = frozenset({"logits", "boxes", "fpn"})
        ours, theirs = student.train().extract(inputs, wants), teacher.extract(inputs, wants)
    count, classes, boxes, better = 0, 0.0, 0.0, 0
    for row in range(2):
        for location, assigned in enumerate(objects.assignment()[row].tolist()):
            if assigned < 0:
                continue
            count += 1
            wanted = theirs.logits[row, location].double().sigmoid()
            logits = ours.logits[row, location].double()
            entropy = -(wanted * wanted.log() + (1 - wanted) * (1 - wanted).log()).sum().item()
            classes += F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum").item() - entropy
            three = [
                CameraBoxes3D(box[None, :7]).corners()
                for box in (
                    ours.boxes[row, location],
                    theirs.boxes[row, location],
                    objects.boxes[row].tensor[assigned],
                )
            ]
            if (three[1] - three[2]).abs().mean() < (three[0] - three[2]).abs().mean():
                better += 1
                boxes += (three[0] - three[1]).abs().mean().item()
    assert 0 < better < count
    assert losses["loss_distill_tar_classes"].item() == pytest.approx(2 * classes / count, rel=1e-4)
    assert losses["loss_distill_tar_boxes"].item() == pytest.approx(3 * boxes / count, rel=1e-4)


def test_images_without_depth_have_no_box_loss() -> None:
    model = build_pair("SMOKE", "TAR")
    batch = [{**sample, "affine_augmented": True} for sample in make_batch("SMOKE", 1, 2)]
    losses = distill_losses(model, batch)
    assert losses["loss_distill_tar_boxes"].item() == 0 and losses["loss_distill_tar_classes"].item() > 0
