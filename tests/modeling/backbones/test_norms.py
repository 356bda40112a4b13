"""Normalisations by name: what learns, and what uses running statistics."""

import pytest
import torch
from torch import nn

from bevkd2.modeling.backbones.layers import make_norm


@pytest.mark.parametrize(
    ("name", "learns", "running"),
    [("FrozenStatsBN", True, True), ("FrozenBN", False, True), ("BN", True, False), ("GN", True, False)],
)
def test_trainable_parameters_and_running_statistics(name: str, learns: bool, running: bool):
    norm = make_norm(name, 8).train()
    assert all(p.requires_grad == learns for p in norm.parameters())
    x = 3 + torch.randn(4, 8, 5, 5)
    unchanged = torch.allclose(norm(x), x, atol=1e-4)
    assert unchanged == running


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (7, 1)])
def test_groups_divide_the_channels(channels: int, groups: int):
    norm = make_norm("GN", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


def test_other_names_are_errors():
    with pytest.raises(ValueError, match="'LN' is unknown"):
        make_norm("LN", 8)
