"""Regression targets of the positive locations."""

from __future__ import annotations

import math

import pytest
import torch

from bevkd2.modeling.mono.fcos3d.targets import DenseTargets, dense_targets
from bevkd2.modeling.mono.inputs import MonoTargets
from bevkd2.structures import project_boxes
from tests.modeling.mono import scenes

OFFSET = 0.7854


def _wanted(targets: MonoTargets) -> DenseTargets:
    return dense_targets(targets, OFFSET)


def _object_rows(targets: MonoTargets, wanted: DenseTargets) -> torch.Tensor:
    """(P, 9) the annotated box of each positive location."""
    rows = [
        targets.boxes[image].tensor[targets.assigned[image, location]]
        for image, location in zip(wanted.images.tolist(), wanted.locations.tolist(), strict=True)
    ]
    return torch.stack(rows)


@pytest.fixture
def targets() -> MonoTargets:
    return scenes.annotations([[scenes.NEAR, scenes.FAR], [], [scenes.LARGE]])


def test_every_positive_has_the_numbers_of_its_own_object(targets: MonoTargets):
    wanted = _wanted(targets)
    boxes = _object_rows(targets, wanted)
    assert set(wanted.images.tolist()) == {0, 2}
    assert len(wanted.images) == int((targets.assigned >= 0).sum())
    torch.testing.assert_close(wanted.size, boxes[:, [3, 5, 4]])
    torch.testing.assert_close(wanted.velocity, boxes[:, 7:])
    torch.testing.assert_close(wanted.yaw, boxes[:, 6] - torch.atan2(boxes[:, 0], boxes[:, 2]))
    torch.testing.assert_close(wanted.depth, boxes[:, 2] + 0.003)  # the calibration's own offset
    pairs = list(zip(wanted.images.tolist(), wanted.locations.tolist(), strict=True))
    assert wanted.labels.tolist() == [targets.labels[i][targets.assigned[i, q]] for i, q in pairs]
    assert wanted.attributes.tolist() == [targets.attributes[i][targets.assigned[i, q]] for i, q in pairs]


def test_offset_and_distances_lead_back_to_centre_and_sides(targets: MonoTargets):
    wanted = _wanted(targets)
    only = wanted.images == 2
    stride = wanted.strides[only, None]
    center = wanted.points[only] - wanted.offset[only] * stride
    torch.testing.assert_close(center, targets.centers2d[2].expand_as(center))
    low = wanted.points[only] - wanted.boxes2d[only, :2] * stride
    high = wanted.points[only] + wanted.boxes2d[only, 2:] * stride
    sides = torch.cat([low, high], dim=1)
    torch.testing.assert_close(sides, targets.boxes2d[2].expand_as(sides))


def test_centerness_falls_from_one_at_the_centre():
    targets = scenes.annotations([[scenes.NEAR]])
    # The location of column 4, row 4 on the coarse level: (72, 72); 16 px beside it, that is one stride.
    targets.centers2d = [torch.tensor([[72.0, 56.0]])]
    targets.assigned = torch.full_like(targets.assigned, -1)
    fine = 8 * 12
    targets.assigned[0, fine + 3 * 6 + 4] = 0  # (72, 56)
    targets.assigned[0, fine + 3 * 6 + 3] = 0  # (56, 56)
    expected = math.exp(-2.5 * 16 / (1.414 * 1.5 * 16))
    torch.testing.assert_close(_wanted(targets).centerness, torch.tensor([expected, 1.0]))


def test_the_direction_is_the_half_turn_from_the_offset():
    straight = [0.0, 0.4, 10.0, 3.9, 1.6, 1.5]  # on the axis: the local yaw is rotation_y
    for yaw, direction in [(OFFSET + 0.1, 0), (OFFSET - 0.1, 1), (OFFSET - 0.1 + math.pi, 0), (-0.1, 1)]:
        wanted = _wanted(scenes.annotations([[[*straight, yaw, 0.0, 0.0]]]))
        assert wanted.direction.tolist() == [direction] * len(wanted.images)
        assert len(wanted.images)


def test_annotations_are_left_as_they_are(targets: MonoTargets):
    before = [boxes.tensor.clone() for boxes in targets.boxes]
    first, second = _wanted(targets), _wanted(targets)
    assert all(torch.equal(b.tensor, c) for b, c in zip(targets.boxes, before, strict=True))
    torch.testing.assert_close(first.yaw, second.yaw, rtol=0, atol=0)


def test_keypoints_are_the_projected_corners_of_the_annotated_box():
    targets = scenes.annotations([[scenes.NEAR]], translation=False)
    wanted = _wanted(targets)
    uv, _ = project_boxes(targets.boxes[0], targets.cam2img[0])
    keypoints, visible = wanted.keypoints(16.0)
    assert bool(visible.all())
    pixels = keypoints.unflatten(1, (8, 2)) * (16 * wanted.strides[:, None, None]) + wanted.points[:, None]
    torch.testing.assert_close(pixels, uv.expand_as(pixels), rtol=1e-4, atol=1e-3)


def test_corners_behind_the_camera_are_not_visible():
    close = [0.5, 0.2, 1.5, 4.5, 1.6, 1.5, math.pi / 2, 0.0, 0.0]  # reaches 0.75 m behind the camera
    wanted = _wanted(scenes.annotations([[close]]))
    keypoints, visible = wanted.keypoints(16.0)
    assert len(keypoints)
    assert visible.sum(dim=1).tolist() == [8] * len(keypoints)
    assert bool((visible[:, 0::2] == visible[:, 1::2]).all())


def test_boxes_without_velocity_and_data_without_attributes():
    wanted = _wanted(scenes.annotations([[scenes.NEAR]], columns=7, attributes=False))
    assert wanted.velocity is None
    assert wanted.attributes is None


def test_a_batch_without_objects_has_no_positives():
    wanted = _wanted(scenes.annotations([[], []]))
    assert {len(value) for value in vars(wanted).values()} == {0}
    assert wanted.keypoints(16.0)[0].shape == (0, 16)
