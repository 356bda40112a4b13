"""Norms of gradients by part, and the warning of losses that do not reach the backbone."""

import pytest
import torch
from torch import nn

from bevkd2.d2 import EventStorage
from bevkd2.distill import gradient_norms, trained_parts
from bevkd2.distill.gradients import OTHER, reaches
from tests.distill.methods.harness import build_pair, make_batch


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.query = nn.Parameter(torch.ones(2))


def test_norms_are_those_of_every_part_and_the_graph_is_kept():
    model = Toy()
    parts = trained_parts(model)
    assert list(parts) == ["first", "second", OTHER] and parts[OTHER] == [model.query]
    hidden = model.first(model.query)
    loss = 3 * hidden.sum()
    for _ in range(2):
        norms = gradient_norms(loss, parts)
    assert norms["second"] == 0
    assert norms["first"] == pytest.approx(3 * 2.0)
    assert norms[OTHER] == pytest.approx(3 * model.first.weight.sum(0).norm().item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_reaches_what_its_gradient_is_not_zero_on():
    model = Toy()
    loss = model.second(model.first(model.query)).sum()
    assert reaches(loss, model.first.parameters()) and reaches(loss * 1e-30, model.first.parameters())
    assert not reaches(loss.detach(), model.first.parameters())
    assert not reaches(model.second.weight.sum(), model.first.parameters())
    assert not reaches(loss, model.frozen.parameters())


def test_distiller_names_losses_that_do_not_reach_the_backbone_once():
    one_layer = ("MODEL.BEVFORMER.ENCODER_LAYERS", 1)
    model = build_pair("BEVFormer", "TemporalAttention", student_width=16, options=one_layer).train()
    seen = []
    for look in (False, True, False):
        model.look_for_unreached |= look
        with EventStorage():
            sum(model(make_batch("BEVFormer", 1)).values()).backward()
        seen.append(model.pop_unreached())
    assert seen == [[], ["TemporalAttention (temporal_attention)"], []]


def test_distiller_names_no_loss_that_reaches_it():
    model = build_pair("BEVFormer", "BEVResponse").train()
    model.look_for_unreached = True
    with EventStorage():
        model(make_batch("BEVFormer", 1))
    assert model.pop_unreached() == []
