"""On two processes, losses and gradients are those of one process with the joint batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bevkd2.modeling import losses as losses_module
from tests.distill.methods import test_heatmap
from tests.distill.methods.inputs import build_method, dense_knowledge, dense_targets, normal

Q, K = 5, 3
LOGITS = normal(2, Q, K, seed=0), normal(2, Q, K, seed=1)
ASSIGNED, LABELS = [[0, -1, 1, 2, -1], [-1, -1, -1, 0, -1]], [[2, 1, 0], [0]]
MAPS = normal(2, K, *test_heatmap.GRID, seed=0), normal(2, K, *test_heatmap.GRID, seed=1)
BOXES = [test_heatmap.BOXES[0], test_heatmap.BOXES[0, :1]]


def of_ranks(monkeypatch: pytest.MonkeyPatch, loss_of: Callable[[int], Tensor]) -> Tensor:
    """The mean loss of two processes, each of which sums its counts with those of the other."""
    sent: list[list[Tensor]] = [[], []]
    rank, position = 0, 0

    def record(tensor: Tensor) -> None:
        sent[rank].append(tensor.clone())

    def add_the_others(tensor: Tensor) -> None:
        nonlocal position
        tensor += sent[1 - rank][position]
        position += 1

    monkeypatch.setattr(losses_module.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(losses_module.dist, "all_reduce", record)
    for rank in (0, 1):
        loss_of(rank)
    assert sent[0] and len(sent[0]) == len(sent[1])
    monkeypatch.setattr(losses_module.dist, "all_reduce", add_the_others)
    losses = []
    for rank in (0, 1):
        position = 0
        losses.append(loss_of(rank))
    monkeypatch.undo()
    return torch.stack(losses).mean()


def dense_loss(method: Any, logits: Tensor, images: slice) -> Tensor:
    targets = dense_targets(ASSIGNED[images], LABELS[images])
    loss: Tensor = method(dense_knowledge(logits[images]), dense_knowledge(LOGITS[1][images]), targets)
    return loss


def heatmap_loss(method: Any, maps: Tensor, images: slice) -> Tensor:
    known = (test_heatmap.knowledge(part[images]) for part in (maps, MAPS[1]))
    loss: Tensor = method(*known, test_heatmap.targets(*BOXES[images]))
    return loss


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("HintonKD", {"LOCATIONS": "objects"}),
        ("HintonKD", {"LOCATIONS": "confident"}),
        ("DKD", {}),
        ("DIST", {"LOCATIONS": "objects", "INTRA_WEIGHT": 0.0}),
        ("Heatmap", {}),
    ],
)
def test_two_processes_equal_one_with_the_joint_batch(monkeypatch, name, settings):
    if name == "Heatmap":
        method, run, values = test_heatmap.build(), heatmap_loss, MAPS[0]
    else:
        method, run, values = build_method(name, **settings), dense_loss, LOGITS[0]
    values = values.clone().requires_grad_()
    whole = run(method, values, slice(0, 2))
    parts = of_ranks(monkeypatch, lambda rank: run(method, values, slice(rank, rank + 1)))
    alone = sum(run(method, values, slice(rank, rank + 1)) for rank in (0, 1)) / 2
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)
    assert abs(alone - whole) > 1e-3 * whole  # the halves have other counts
    gradients = [torch.autograd.grad(loss, values)[0] for loss in (parts, whole)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)
