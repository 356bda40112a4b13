"""Decoding: scores, the best of every level, suppression, and nothing found."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bevkd2.modeling.mono.fcos3d.decode import (
    Candidates,
    DecodeOptions,
    candidates_of,
    class_scores,
    fused_depth,
    select_detections,
)
from bevkd2.modeling.mono.fcos3d.head import DenseOutputs
from bevkd2.modeling.mono.grid import DenseGrid
from bevkd2.structures import CameraBoxes3D

OPTIONS = DecodeOptions(
    direction_offset=0.7854,
    candidates_per_level=10,
    nms_threshold=0.5,
    nms_inclusive=False,
    score_threshold=0.1,
    max_detections=5,
    depth_unit=10.0,
)
SHAPES = [(4, 6), (2, 3)]


def make_outputs(batch: int = 1, **changes: object) -> DenseOutputs:
    generator = torch.Generator().manual_seed(0)

    def maps(channels: int) -> list[torch.Tensor]:
        return [torch.randn(batch, channels, *shape, generator=generator) for shape in SHAPES]

    boxes = maps(7)
    for level in boxes:
        level[:, 2:6] = level[:, 2:6].abs() + 1
    outputs = DenseOutputs(logits=maps(3), boxes=boxes, direction=maps(2), centerness=maps(1))
    return dataclasses.replace(outputs, **changes)


def decode(outputs: DenseOutputs, options: DecodeOptions = OPTIONS) -> list[Candidates]:
    camera = torch.eye(4)
    camera[0, 0] = camera[1, 1] = 50.0
    camera[:2, 2] = 16.0
    batch = len(outputs.logits[0])
    depth, _, _ = fused_depth([level[:, 2:3] for level in outputs.boxes], outputs.depth_bins, None, 0.0)
    return candidates_of(
        outputs,
        depth,
        cam2img=camera.expand(batch, 4, 4),
        image_sizes=torch.tensor([32.0, 48.0]).expand(batch, 2),
        grid=DenseGrid.of_levels([level.shape[-2:] for level in outputs.logits], [8, 16], "cpu"),
        options=options,
    )


def make_candidates(scores: list[list[float]], apart: float) -> Candidates:
    """Boxes of 4 m side by side, ``apart`` metres from centre to centre."""
    count = len(scores)
    boxes = torch.zeros(count, 7)
    boxes[:, 0] = apart * torch.arange(count)
    boxes[:, 2], boxes[:, 3:6] = 20.0, 4.0
    return Candidates(
        boxes=CameraBoxes3D(boxes),
        scores=torch.tensor(scores),
        direction=torch.zeros(count, dtype=torch.long),
        boxes2d=torch.arange(4.0 * count).reshape(count, 4),
        attributes=torch.arange(count),
    )


def test_scores_are_products_of_the_available_factors():
    plain = make_outputs()
    expected = torch.cat(
        [
            (logit.sigmoid() * center.sigmoid()).flatten(2).transpose(1, 2)
            for logit, center in zip(plain.logits, plain.centerness, strict=True)
        ],
        dim=1,
    )
    torch.testing.assert_close(class_scores(plain), expected)
    even = [torch.zeros(1, 8, *shape) for shape in SHAPES]
    sure = [torch.full((1, 1, *shape), -1.0) for shape in SHAPES]
    with_depth = dataclasses.replace(plain, depth_bins=even, uncertainty=sure)
    torch.testing.assert_close(class_scores(with_depth), expected / 8 * torch.e)


def test_every_level_sends_its_best_locations():
    outputs = make_outputs()
    found = decode(outputs)[0]
    assert len(found) == 10 + 6
    best = class_scores(outputs)[0].amax(dim=1)
    expected = best[:24].topk(10).values
    torch.testing.assert_close(found.scores[:10].amax(dim=1), expected)
    torch.testing.assert_close(found.scores[10:], class_scores(outputs)[0, 24:])


def test_headings_turn_with_the_direction_and_the_pixel():
    outputs = make_outputs()
    first, second = torch.tensor([5.0, -5.0]), torch.tensor([-5.0, 5.0])
    turned = []
    for logits in (first, second):
        direction = [logits[None, :, None, None].expand(1, 2, *shape) for shape in SHAPES]
        turned.append(decode(dataclasses.replace(outputs, direction=direction))[0])
    difference = turned[1].boxes.rotation_y - turned[0].boxes.rotation_y
    torch.testing.assert_close(difference, torch.full_like(difference, torch.pi))
    u = turned[0].boxes.center[:, 0] / turned[0].boxes.depth
    local = turned[0].boxes.rotation_y - torch.atan(u)
    assert bool(((local > 0.785) & (local < 0.7855 + torch.pi)).all())


def test_2d_boxes_stay_in_the_image():
    sides = [torch.full((1, 4, *shape), 1.0) for shape in SHAPES]
    found = decode(make_outputs(boxes2d=sides), dataclasses.replace(OPTIONS, candidates_per_level=100))[0]
    assert found.boxes2d is not None
    # The location of the upper left cell is (4, 4): 8 px to each side, clipped at the border.
    assert found.boxes2d[0].tolist() == [0, 0, 12, 12]
    assert found.boxes2d[23].tolist() == [36, 20, 48, 32]


def test_suppression_is_by_class_and_by_score():
    overlapping = make_candidates([[0.5, 0.9], [0.6, 0.2], [0.05, 0.05]], apart=0.5)
    found = select_detections(overlapping, OPTIONS)
    assert found["scores"].tolist() == pytest.approx([0.9, 0.6])
    assert found["labels"].tolist() == [1, 0]
    assert found["attributes"].tolist() == [0, 1]
    assert found["boxes2d"][0].tolist() == [0, 1, 2, 3]
    apart = select_detections(make_candidates([[0.5, 0.9], [0.6, 0.2], [0.05, 0.05]], apart=10.0), OPTIONS)
    assert apart["scores"].tolist() == pytest.approx([0.9, 0.6, 0.5, 0.2])


def test_equality_suppresses_only_where_asked():
    # Boxes of 4 m, shifted by 2 m: the IoU is 1/3.
    candidates = make_candidates([[0.5], [0.4]], apart=2.0)
    third = dataclasses.replace(OPTIONS, nms_threshold=1 / 3)
    assert len(select_detections(candidates, third)["scores"]) == 2
    inclusive = dataclasses.replace(third, nms_inclusive=True)
    assert len(select_detections(candidates, inclusive)["scores"]) == 1


def test_the_best_are_kept():
    found = select_detections(make_candidates([[0.2 + 0.05 * i] for i in range(8)], apart=10.0), OPTIONS)
    assert found["scores"].tolist() == pytest.approx([0.55, 0.5, 0.45, 0.4, 0.35])


def test_nothing_above_the_threshold_is_no_detection():
    outputs = make_outputs(batch=2, logits=[torch.full((2, 3, *shape), -20.0) for shape in SHAPES])
    for candidates in decode(outputs):
        found = select_detections(candidates, OPTIONS)
        assert isinstance(found["boxes"], CameraBoxes3D)
        assert len(found["boxes"]) == len(found["scores"]) == len(found["labels"]) == 0
        assert found["labels"].dtype == torch.int64


@pytest.mark.parametrize("field", ["logits", "centerness"])
def test_scores_that_are_no_numbers_are_an_error_and_not_no_detection(field: str):
    outputs = make_outputs()
    getattr(outputs, field)[0][0, 0, 1, 2] = float("nan")
    (candidates,) = decode(outputs)
    with pytest.raises(ValueError, match="scores contain NaN: its weights or its training have diverged"):
        select_detections(candidates, OPTIONS)
