"""Normalisation layers by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bevkd2.config import add_removed_key

NORMS = ("FrozenStatsBN", "FrozenBN", "BN", "GN")
"""Values of MODEL.BACKBONE.NORM."""

_REMOVED = {"FixedBN": "it is FrozenBN, Detectron2's name, now (and what was FrozenBN is FrozenStatsBN)"}

add_removed_key(
    "MODEL.RESNETS.NORM",
    "use MODEL.BACKBONE.NORM, for backbones of all kinds; the value FrozenBN is FrozenStatsBN now, and "
    "FixedBN is FrozenBN, as in Detectron2",
)


def check_norm(norm: str, supported: Sequence[str], backbone: str) -> None:
    """Checks a value of MODEL.BACKBONE.NORM.

    Args:
        norm: the value.
        supported: those that the backbone supports.
        backbone: the kind of backbone, for the message.

    Raises:
        ValueError: another value.
    """
    if norm not in supported:
        raise ValueError(
            f"MODEL.BACKBONE.NORM is {norm!r}, expected {' or '.join(supported)} for {backbone}{_hint(norm)}"
        )


def _hint(norm: str) -> str:
    return f"; {_REMOVED[norm]}" if norm in _REMOVED else ""


class FrozenStatsBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation by the running statistics even in training; its affine part can still learn.

    This is how the published detectors treat their backbones: batches of few images have poor statistics.
    """

    def train(self, mode: bool = True) -> FrozenStatsBatchNorm2d:
        """Stays in eval mode, whatever ``mode`` is."""
        return super().train(False)


def make_norm(name: str, channels: int) -> nn.Module:
    """Builds a normalisation layer.

    Args:
        name: "FrozenStatsBN" (running statistics, the affine part learns) | "FrozenBN" (nothing learns) |
            "BN" | "GN" (32 groups, or the largest power of two below it that divides the channels).
        channels: C.

    Raises:
        ValueError: another name.
    """
    if name not in NORMS:
        raise ValueError(f"normalisation {name!r} is unknown, expected {' or '.join(NORMS)}{_hint(name)}")
    if name in ("FrozenStatsBN", "FrozenBN"):
        norm = FrozenStatsBatchNorm2d(channels).train()
        if name == "FrozenBN":
            freeze_parameters(norm)
        return norm
    if name == "BN":
        return nn.BatchNorm2d(channels)
    groups = 32
    while channels % groups:
        groups //= 2
    return nn.GroupNorm(groups, channels)


def freeze_batch_norms(module: nn.Module) -> None:
    """Sets every batch normalisation of the module to use its running statistics."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eval()


def freeze_parameters(module: nn.Module) -> None:
    """Freezes all parameters of the module."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
