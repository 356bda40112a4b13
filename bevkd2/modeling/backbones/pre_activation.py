"""Backbones that can tell their features before a stage's last ReLU."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from bevkd2.modeling.knowledge import PreActivation


@runtime_checkable
class PreActivationBackbone(Protocol):
    """A backbone whose stages end in a batch normalisation, a sum and a ReLU."""

    def lacks_pre_activation(self, name: str) -> str:
        """Returns why a feature has none; empty where it has."""
        ...

    def forward_with_pre_activation(self, x: Tensor) -> tuple[dict[str, Tensor], dict[str, PreActivation]]:
        """Maps (N, 3, H, W) to the features by name, and to those of them that have a pre-activation."""
        ...
