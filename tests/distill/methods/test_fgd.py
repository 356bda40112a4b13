"""FGD's masks, weights and padding; its losses are held to recordings in tests/golden."""

from __future__ import annotations

import pytest
import torch

from bevkd2.distill.methods.feature import attention_of, spatial_attention
from bevkd2.distill.methods.fgd import ContextBlock
from bevkd2.ops import absolute_means
from tests.distill.methods.random_maps import BOXES, SHAPES, STRIDES, build, knowledge, targets


def test_the_focal_loss_is_its_formula_with_loops() -> None:
    method = build("FGD", TEMPERATURE=0.6, FOREGROUND_WEIGHT=3.0, BACKGROUND_WEIGHT=2.0)
    student, teacher, objects = knowledge(4, 1), knowledge(6, 2), targets()
    expected = 0.0
    for level, adapter in enumerate(method.adapters):
        ours, theirs = adapter(student.fpn[level]), teacher.fpn[level]
        pixels, channels = spatial_attention(theirs, 0.6), attention_of(theirs.abs().mean(dim=(2, 3)), 0.6)
        (rows, columns), stride = SHAPES[level], STRIDES[level]
        for image, boxes in enumerate(objects.boxes2d):
            inside = torch.zeros(rows, columns)
            for x1, y1, x2, y2 in (boxes / stride).tolist():
                left, top, right, bottom = int(x1), int(y1), -int(-x2 // 1), -int(-y2 // 1)
                area = 1 / ((right + 1 - left) * (bottom + 1 - top))
                region = inside[top : bottom + 1, left : right + 1]
                region.copy_(region.clamp(min=area))
            count = int((inside == 0).sum())
            for row in range(rows):
                for column in range(columns):
                    mask = 3.0 * inside[row, column] if inside[row, column] > 0 else 2.0 / count
                    difference = ours[image, :, row, column] - theirs[image, :, row, column]
                    weighted = (channels[image] * difference.square()).sum() * pixels[image, row, column]
                    expected += (mask * weighted).item() / 2
    assert method(student, teacher, objects)["fgd_focal"].item() == pytest.approx(expected, rel=1e-6)


def test_attention_has_mean_one_and_grows_with_the_features() -> None:
    features = torch.ones(2, 3, 4, 5)
    features[0, :, 1, 2], features[1, 2] = -4.0, 7.0
    pixels, channels = spatial_attention(features, 0.5), attention_of(absolute_means(features).channels, 0.5)
    assert torch.allclose(pixels.mean(dim=(1, 2)), torch.ones(2)) and pixels[0].argmax() == 1 * 5 + 2
    assert torch.allclose(channels.mean(dim=1), torch.ones(2)) and channels[1].argmax() == 2


def test_padding_is_in_no_mask() -> None:
    method = build("FGD")
    sizes = [(32.0, 48.0)] * 2
    student, teacher = knowledge(4, 1, 2, sizes), knowledge(6, 2, 2, sizes)
    method(student, teacher, targets(2, []))["fgd_focal"].backward()
    for level, stride in zip(student.fpn, STRIDES, strict=True):
        padding = torch.ones(level.shape[2:], dtype=torch.bool)
        padding[: int(32 / stride), : int(48 / stride)] = False
        assert bool((level.grad[:, :, padding] == 0).all())
        assert bool((level.grad[:, :, ~padding] != 0).any())


def test_without_a_weight_there_is_no_relation_and_no_block() -> None:
    method = build("FGD", RELATION_WEIGHT=0.0, ATTENTION_WEIGHT=0.0)
    losses = method(knowledge(4, 1), knowledge(6, 2), targets(2, BOXES))
    assert set(losses) == {"fgd_focal"} and not list(method.blocks.parameters())


def test_both_context_blocks_learn() -> None:
    method = build("FGD")
    sum(method(knowledge(4, 1), knowledge(6, 2), targets()).values()).backward()
    for block in method.blocks:
        for role in ("student", "teacher"):
            assert isinstance(block[role], ContextBlock)
            assert float(block[role].transform[-1].weight.grad.abs().max()) > 0
