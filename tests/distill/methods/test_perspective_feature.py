"""Perspective-induced feature imitation as a method: adapters, levels, weights, errors."""

import pytest
import torch
from torch import nn

from bevkd2.config import get_cfg
from bevkd2.d2 import ShapeSpec
from bevkd2.distill.methods import PerspectiveFeature
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import MonoKnowledge
from bevkd2.modeling.mono.grid import DenseGrid
from bevkd2.modeling.mono.inputs import MonoTargets
from bevkd2.ops import perspective_matrix
from bevkd2.structures import CameraBoxes3D

SIZES = [(64, 96), (48, 80)]
STRIDES = (4, 8)


def shapes(channels=4, strides=STRIDES):
    return FeatureShapes(backbone={}, fpn=[ShapeSpec(channels=channels, stride=s) for s in strides])


def build(student=4, teacher=4, strides=STRIDES, **options):
    node = get_cfg().DISTILL.PERSPECTIVE_FEATURE
    for key, value in options.items():
        assert key in node
        node[key] = value
    return PerspectiveFeature(node, shapes(student), shapes(teacher, strides))


def knowledge(seed, channels=4, images=(0, 1)):
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(2, channels, 64 // s, 96 // s, generator=generator) for s in STRIDES]
    return MonoKnowledge(
        fpn=[level[list(images)] for level in levels],
        fpn_strides=list(STRIDES),
        image_sizes=torch.tensor([SIZES[i] for i in images], dtype=torch.float32),
    )


def targets(boxes2d, depths):
    empty = torch.zeros(0, dtype=torch.long)
    return MonoTargets(
        boxes=[CameraBoxes3D.empty() for _ in boxes2d], labels=[empty for _ in boxes2d], boxes2d=boxes2d,
        centers2d=[], depths=depths, attributes=None, image_sizes=torch.tensor(SIZES), cam2img=torch.eye(4),
        affine_augmented=torch.zeros(2, dtype=torch.bool), grid=DenseGrid.of_levels([(8, 12)], [8], "cpu"),
    )  # fmt: skip


NOTHING = targets([torch.zeros(0, 4)] * 2, [torch.zeros(0)] * 2)


def test_loss_is_equation_4_over_the_content_averaged_over_levels():
    student, teacher = knowledge(0), knowledge(1)
    loss = build(ADAPTER="none")(student, teacher, NOTHING)
    expected = 0.0
    for s, t, stride in zip(student.fpn, teacher.fpn, STRIDES, strict=True):
        matrix = perspective_matrix(
            student.image_sizes,
            tuple(s.shape[-2:]),
            stride,
            amplitude=0.3,
            sigma=(0.7, 0.7),
            center=(0.5, 0.5),
        )
        for b, (height, width) in enumerate(SIZES):
            rows, columns = -(-height // stride), -(-width // stride)
            part = (matrix[b] * (s[b] - t[b]).square())[:, :rows, :columns]
            expected += part.mean().item() / 2 / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_padding_does_not_count_and_a_batch_is_the_mean_of_its_images():
    method = build(ADAPTER="none")
    student, teacher = knowledge(0), knowledge(1)
    before = method(student, teacher, NOTHING)
    student.fpn[0][1, :, 12:] += 100
    student.fpn[1][1, :, :, 10:] = float("nan")
    torch.testing.assert_close(before, method(student, teacher, NOTHING))
    alone = [method(knowledge(0, images=(i,)), knowledge(1, images=(i,)), NOTHING) for i in (0, 1)]
    torch.testing.assert_close(before, torch.stack(alone).mean())


@pytest.mark.parametrize(("kind", "kernel"), [("conv1x1", 1), ("conv3x3", 3)])
def test_adapters_map_to_the_teacher_s_width_and_are_trained(kind, kernel):
    method = build(student=2, teacher=6, ADAPTER=kind)
    assert [tuple(a.weight.shape) for a in method.adapters] == [(6, 2, kernel, kernel)] * 2
    loss = method(knowledge(0, channels=2), knowledge(1, channels=6), NOTHING)
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in method.parameters())


def test_without_perspective_it_is_plain_feature_imitation():
    student, teacher = knowledge(0, images=(0,)), knowledge(1, images=(0,))
    loss = build(ADAPTER="none", PERSPECTIVE=False, LEVELS=[1])(student, teacher, NOTHING)
    expected = nn.functional.mse_loss(student.fpn[1], teacher.fpn[1])
    torch.testing.assert_close(loss, expected)


def test_near_boxes_lower_the_loss_only_where_they_are():
    student, teacher = knowledge(0), knowledge(0)
    student.fpn[0][0, :, 2, 3] += 1  # the cell over pixels x 12..16, y 8..12
    options = {"ADAPTER": "none", "LEVELS": [0], "OCCLUSION": "near_boxes", "NEAR_DEPTH": 20.0}
    here, elsewhere = torch.tensor([[8.0, 4.0, 20.0, 16.0]]), torch.tensor([[40.0, 4.0, 60.0, 16.0]])
    loss = {
        name: build(**options)(student, teacher, targets([box, torch.zeros(0, 4)], [depth, torch.zeros(0)]))
        for name, box, depth in (
            ("near", here, torch.tensor([5.0])),
            ("far", here, torch.tensor([50.0])),
            ("beside", elsewhere, torch.tensor([5.0])),
        )
    }
    value = {name: losses.item() for name, losses in loss.items()}
    assert value["near"] == pytest.approx(value["far"] / 4) and value["beside"] == value["far"] > 0


def test_near_boxes_need_targets_with_boxes():
    with pytest.raises(ValueError, match="near_boxes needs targets with 2D boxes"):
        build(ADAPTER="none", OCCLUSION="near_boxes")(knowledge(0), knowledge(1), object())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ADAPTER": "linear"}, "ADAPTER: 'linear'; expected one of conv1x1, conv3x3, none"),
        ({"ADAPTER": "none", "student": 2}, "2 channels and the teacher's 4; use conv1x1"),
        ({"LEVELS": [2]}, r"LEVELS: \[2\]; the student's neck has 2 levels"),
        ({"strides": (8, 16)}, r"strides \[4, 8\], the teacher's \[8, 16\]"),
        ({"SIGMA": [0.0, 0.7]}, "deviations above 0"),
        ({"OCCLUSION": "on"}, "OCCLUSION: 'on'; expected one of off, near_boxes"),
        ({"NEAR_DEPTH": 0.0}, "NEAR_DEPTH: 0"),
    ],
)
def test_invalid_settings_are_errors_at_build_time(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
