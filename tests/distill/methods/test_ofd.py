"""OFD against its formula with loops, and the backbones that cannot be read."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bevkd2.d2 import ShapeSpec
from bevkd2.distill import DISTILL_REGISTRY
from bevkd2.distill.methods.ofd import negative_mean
from bevkd2.modeling import Knowledge, PreActivation
from bevkd2.modeling.detector import FeatureShapes
from tests.distill.methods.harness import build_pair, method_node

STAGES = {"res3": 8, "res4": 16}


def build(channels: int, teacher_channels: int):
    torch.manual_seed(0)
    shapes = (
        FeatureShapes({name: ShapeSpec(channels=c, stride=stride) for name, stride in STAGES.items()}, fpn=[])
        for c in (channels, teacher_channels)
    )
    return DISTILL_REGISTRY.get("OFD")(method_node("OFD"), *shapes).double()


def known(channels: int, seed: int) -> Knowledge:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, stride in STAGES.items():
        features = torch.randn(
            2, channels, 64 // stride, 48 // stride, generator=generator, dtype=torch.float64
        )
        mean, std = torch.randn(2, channels, generator=generator, dtype=torch.float64)
        found[name] = PreActivation(features.requires_grad_(), mean, std.abs() + 0.1)
    return Knowledge(pre_activation=found)


def naive_margin(mean: float, std: float) -> float:
    """The mean of the negative part of a normal distribution, by the sum over small steps."""
    step = std / 2000
    mass = moment = 0.0
    value = -step / 2
    while value > mean - 12 * std and value > -20 * std:
        density = math.exp(-(((value - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
        mass, moment, value = mass + density * step, moment + value * density * step, value - step
    return moment / mass if mass > 1e-3 else -3 * std


def test_margins_are_means_of_negative_features() -> None:
    mean = torch.tensor([0.3, -0.7, 0.0, 5.0], dtype=torch.float64)
    std = torch.tensor([0.8, 0.5, 1.0, 1.0], dtype=torch.float64)
    expected = [naive_margin(m, s) for m, s in zip(mean.tolist(), std.tolist(), strict=True)]
    assert expected[-1] == -3.0
    found = negative_mean(PreActivation(torch.zeros(1, 4, 1, 1), mean, std))
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_it_is_its_formula() -> None:
    method, student, teacher = build(3, 4), known(3, 1), known(4, 2)
    expected = 0.0
    for i, name in enumerate(STAGES):
        theirs: Tensor = teacher.pre_activation[name].features
        margins = negative_mean(teacher.pre_activation[name]).tolist()
        ours = method.connectors[i](student.pre_activation[name].features)
        partial = 0.0
        for value, wanted, margin in zip(
            ours.transpose(0, 1).flatten(1).tolist(),
            theirs.transpose(0, 1).flatten(1).tolist(),
            margins,
            strict=True,
        ):
            for s, t in zip(value, wanted, strict=True):
                target = max(t, margin)
                if not s <= target <= 0:
                    partial += (s - target) ** 2
        expected += partial / 2 / 2 ** (len(STAGES) - 1 - i)
    loss = method(student, teacher, None)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert all(found.features.grad.isfinite().all() for found in student.pre_activation.values())
    assert all(found.features.grad is None for found in teacher.pre_activation.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.BACKBONE.NORM", "GN"), r"ends in GroupNorm.*set MODEL\.BACKBONE\.NORM"),
        (
            (
                *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.NORM", "FrozenStatsBN"),
                *("MODEL.TIMM.NAME", "dla34", "MODEL.TIMM.OUT_INDICES", [3, 4]),
            ),
            "student's backbone, TimmBackbone, cannot tell",
        ),
    ],
)
def test_a_backbone_that_cannot_be_read_is_an_error_when_the_model_is_built(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        build_pair("PGD", "OFD", options=options)


def test_sources_other_than_stages_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"DISTILL\.OFD\.SOURCES: fpn"):
        build_pair("PGD", "OFD", options=("MODEL.BACKBONE.NORM", "BN"), SOURCES=["fpn"])


def test_the_stem_is_an_error() -> None:
    options = ("MODEL.BACKBONE.NORM", "BN", "MODEL.RESNETS.OUT_FEATURES", ["stem", "res3", "res4"])
    with pytest.raises(
        ValueError, match=r"backbone\.stem of the student's backbone, ResNet, ends in no block"
    ):
        build_pair("PGD", "OFD", options=options)
