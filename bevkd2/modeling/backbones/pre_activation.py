"""Backbones that can tell their features before a stage's last ReLU."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from bevkd2.modeling.knowledge import PreActivation


@runtime_checkable
class PreActivationBackbone(Protocol):
    """A backbone whose stages end in a batch normalisation, a sum and a ReLU."""

    def lacks_pre_activation(self, name: str) -> str:
        """Returns why a feature has no pre-activation; empty where it has.

        Args:
            name: of the feature.

        Returns:
            What follows the feature's name in a message.
        """
        ...

    def forward_with_pre_activation(self, x: Tensor) -> tuple[dict[str, Tensor], dict[str, PreActivation]]:
        """Computes the features, and what they are before their last ReLU.

        Args:
            x: (N, 3, H, W).

        Returns:
            The features by name, and the pre-activations of those of them that have one.
        """
        ...
