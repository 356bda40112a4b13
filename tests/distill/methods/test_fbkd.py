"""FBKD against its formula with loops, and that a student can be perfect."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevkd2.distill.methods.fbkd import NonLocal
from tests.distill.methods.random_maps import build, knowledge, targets


def naive_attention(features: Tensor, temperature: float) -> Tensor:
    values = torch.zeros(features.shape[0], *features.shape[2:], dtype=torch.float64)
    for channel in range(features.shape[1]):
        values += features[:, channel].abs() / features.shape[1]
    exponentials = (values / temperature).exp()
    return exponentials / exponentials.sum(dim=(1, 2), keepdim=True) * values[0].numel()


def naive_non_local(block: NonLocal, x: Tensor) -> Tensor:
    """The product of all pairs of cells, which the block does not make."""
    query, key, value = block.query(x), block.key(x), block.value(x)
    if block.pool > 1:
        key, value = (F.max_pool2d(maps, block.pool, ceil_mode=True) for maps in (key, value))
    pairs = torch.einsum("rcq,rck->rqk", query.flatten(2), key.flatten(2)) / key.flatten(2).shape[2]
    mixed = torch.einsum("rqk,rck->rcq", pairs, value.flatten(2)).view_as(query)
    return x + block.out(mixed)


def test_it_is_its_formula() -> None:
    method = build("FBKD", TEMPERATURE=0.7)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(std=0.5)
    student, teacher = knowledge(4, 1), knowledge(6, 2)
    losses = method(student, teacher, targets())
    expected = dict.fromkeys(losses, 0.0)
    for ours, theirs, adapter, part in zip(
        student.fpn, teacher.fpn, method.adapters, method.parts, strict=True
    ):
        mask = (naive_attention(ours, 0.7) + naive_attention(theirs, 0.7)) / 2
        squares = (adapter(ours) - theirs).square()
        expected["fbkd_features"] += 4e-4 * math.sqrt(
            sum((squares[:, c] * mask).sum().item() for c in range(6))
        )
        channels = part.channels(ours.mean(dim=(2, 3))) - theirs.mean(dim=(2, 3))
        cells = part.cells(ours.mean(dim=1, keepdim=True)) - theirs.mean(dim=1, keepdim=True)
        expected["fbkd_pooled"] += 2e-2 * (channels.norm() + cells.norm()).item()
        related = part.adapter(naive_non_local(part.student, ours)) - naive_non_local(part.teacher, theirs)
        expected["fbkd_non_local"] += 4e-4 * related.norm().item()
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-9)


def test_a_student_that_is_the_teacher_has_loss_and_gradient_zero() -> None:
    method = build("FBKD", 6, 6)
    for module in method.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == module.out_channels == 6:
            nn.init.dirac_(module.weight)
            nn.init.zeros_(module.bias)
    for part in method.parts:
        nn.init.eye_(part.channels.weight)
        nn.init.zeros_(part.channels.bias)
        nn.init.dirac_(part.cells.weight)
        nn.init.zeros_(part.cells.bias)
    student = knowledge(6, 1)
    loss = sum(method(student, knowledge(6, 1), targets()).values())
    loss.backward()
    assert loss.item() < 1e-12
    assert all(level.grad.abs().max() < 1e-9 for level in student.fpn)


def test_the_teachers_block_learns_and_its_features_do_not() -> None:
    method, student, teacher = build("FBKD"), knowledge(4, 1), knowledge(6, 2)
    sum(method(student, teacher, targets()).values()).backward()
    assert all(part.teacher.out.weight.grad.abs().max() > 0 for part in method.parts)
    assert all(level.grad is None for level in teacher.fpn)
