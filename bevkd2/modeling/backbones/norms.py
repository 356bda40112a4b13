"""Normalisation layers by name."""

from __future__ import annotations

from torch import nn

NORMS = ("FrozenBN", "BN", "GN")
"""What any backbone can have; ours can have "FixedBN", too."""


class FrozenStatsBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation by the running statistics even in training; its affine part can still learn.

    This is how the published detectors treat their backbones: batches of few images have poor statistics.
    """

    def train(self, mode: bool = True) -> FrozenStatsBatchNorm2d:
        """Stays in eval mode whatever is asked."""
        return super().train(False)


def make_norm(name: str, channels: int) -> nn.Module:
    """A normalisation layer.

    Args:
        name: "FrozenBN" (running statistics, affine part learns) | "FixedBN" (nothing learns) | "BN" | "GN"
            (32 groups, or the largest power of two that divides the channels).
        channels: C.

    Raises:
        ValueError: another name.
    """
    if name == "FrozenBN":
        return FrozenStatsBatchNorm2d(channels).train()
    if name == "FixedBN":
        norm = FrozenStatsBatchNorm2d(channels).train()
        freeze_parameters(norm)
        return norm
    if name == "BN":
        return nn.BatchNorm2d(channels)
    if name == "GN":
        groups = 32
        while channels % groups:
            groups //= 2
        return nn.GroupNorm(groups, channels)
    raise ValueError(f"normalisation {name!r} is unknown, expected FixedBN or one of {', '.join(NORMS)}")


def freeze_batch_norms(module: nn.Module) -> None:
    """Lets every batch normalisation of the module use its running statistics."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eval()


def freeze_parameters(module: nn.Module) -> None:
    """Lets no parameter of the module learn."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
