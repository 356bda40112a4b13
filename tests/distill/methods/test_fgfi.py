"""FGFI against its formula with loops."""

from __future__ import annotations

import pytest
import torch

from tests.distill.methods.random_maps import SHAPES, STRIDES, build, knowledge, targets, total


def overlap(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def naive_masks(
    boxes: torch.Tensor, threshold: float, scale: float, ratios: list[float]
) -> list[torch.Tensor]:
    """Marks the cells of both levels, box by box, cell by cell, anchor by anchor."""
    masks = [torch.zeros(shape) for shape in SHAPES]
    for box in boxes.tolist():
        found = {}
        for level, ((rows, columns), stride) in enumerate(zip(SHAPES, STRIDES, strict=True)):
            for row in range(rows):
                for column in range(columns):
                    x, y = (column + 0.5) * stride, (row + 0.5) * stride
                    for ratio in ratios:
                        width, height = scale * stride / ratio**0.5, scale * stride * ratio**0.5
                        anchor = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
                        key = (level, row, column)
                        found[key] = max(found.get(key, 0.0), overlap(box, anchor))
        largest = max(found.values())
        for (level, row, column), value in found.items():
            if value > threshold * largest:
                masks[level][row, column] = 1.0
    return masks


@pytest.mark.parametrize(("threshold", "scale"), [(0.5, 2.0), (0.8, 3.0), (0.0, 1.0)])
def test_it_is_its_formula(threshold: float, scale: float) -> None:
    method = build("FGFI", THRESHOLD=threshold, ANCHOR_SCALE=scale)
    student, teacher, objects = knowledge(4, 1), knowledge(6, 2), targets()
    masks = [naive_masks(boxes, threshold, scale, [0.5, 1.0, 2.0]) for boxes in objects.boxes2d]
    loss, count = 0.0, 0.0
    for level, adapter in enumerate(method.adapters):
        adapted = adapter(student.fpn[level])
        for image in range(2):
            for row in range(SHAPES[level][0]):
                for column in range(SHAPES[level][1]):
                    if masks[image][level][row, column]:
                        count += 1
                        difference = (
                            adapted[image, :, row, column] - teacher.fpn[level][image, :, row, column]
                        )
                        loss += difference.square().sum().item()
    assert 0 < count < 2 * sum(rows * columns for rows, columns in SHAPES)
    assert method(student, teacher, objects).item() == pytest.approx(loss / (2 * count), rel=1e-6)


def test_objects_count_where_anchors_have_their_size() -> None:
    method = build("FGFI", ANCHOR_SCALE=1.0, ANCHOR_RATIOS=[1.0], THRESHOLD=0.9)
    boxes = [[8.0, 8.0, 16.0, 16.0]], [[16.0, 16.0, 32.0, 32.0]]  # one cell of either level
    for level, box in enumerate(boxes):
        student, teacher = knowledge(4, 1, 1), knowledge(6, 2, 1)
        total(method(student, teacher, targets(1, box))).backward()
        reached = [maps.grad.abs().max() > 0 for maps in student.fpn]
        assert reached == [level == 0, level == 1]
