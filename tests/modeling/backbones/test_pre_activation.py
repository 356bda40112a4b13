"""Features of ResNets before the last ReLU."""

from __future__ import annotations

import pytest
import torch

from bevkd2.modeling.backbones import PreActivationBackbone, ResNet


def make(depth: int, norm: str = "FrozenStatsBN", **options) -> ResNet:
    torch.manual_seed(0)
    model = ResNet(
        depth=depth,
        stem_channels=8,
        res2_channels=32,
        norm=norm,
        out_features=("stem", "res3", "res4"),
        **options,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_()
    return model


@pytest.mark.parametrize("depth", [10, 50])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_their_relu_is_the_feature(depth: int, checkpointing: bool) -> None:
    model = make(depth, checkpointing=checkpointing).train()
    assert isinstance(model, PreActivationBackbone)
    images = torch.randn(2, 3, 64, 64, requires_grad=True)
    features, found = model.forward_with_pre_activation(images)
    plain = model(images)
    assert set(found) == {"res3", "res4"}
    assert all(torch.equal(features[name], plain[name]) for name in plain)
    for name, before in found.items():
        assert torch.equal(before.features.relu(), features[name])
        assert float(before.features.detach().min()) < 0
    found["res4"].features.sum().backward()
    assert images.grad is not None and float(images.grad.abs().max()) > 0


@pytest.mark.parametrize(("depth", "last"), [(10, "bn2"), (50, "bn3")])
def test_statistics_are_those_of_the_stages_last_normalisation(depth: int, last: str) -> None:
    model = make(depth)
    _, found = model.forward_with_pre_activation(torch.randn(1, 3, 64, 64))
    norm = getattr(model.layer3[-1], last)
    assert torch.equal(found["res4"].mean, norm.bias) and torch.equal(found["res4"].std, norm.weight.abs())
    assert not found["res4"].mean.requires_grad


def test_what_has_none_says_why() -> None:
    model = make(10)
    assert model.lacks_pre_activation("res3") == ""
    assert "no block" in model.lacks_pre_activation("stem")
    assert "no block" in model.lacks_pre_activation("res5")
    assert "GroupNorm" in make(10, "GN").lacks_pre_activation("res3")
