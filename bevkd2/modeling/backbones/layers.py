"""Layers that backbones, necks and heads share: normalisation by name, deformable convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from bevkd2.config import add_removed_key
from bevkd2.structures.cameras import without_autocast

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


class DeformConv2d(nn.Conv2d):
    """A 3x3 convolution whose taps are shifted and weighted as its input says.

    The offsets start at zero and the modulation at one half, so initially it is half of a plain convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, groups: int = 1, bias: bool = False
    ) -> None:
        """Makes both convolutions.

        Args:
            in_channels: channels read.
            out_channels: channels written.
            stride: in pixels.
            groups: of the main convolution.
            bias: of the main convolution.
        """
        super().__init__(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=bias)
        # 27 channels: 18 offsets (y, x of every tap), then 9 modulation logits.
        self.conv_offset = nn.Conv2d(in_channels, 27, 3, stride, padding=1)
        nn.init.zeros_(self.conv_offset.weight)
        assert self.conv_offset.bias is not None
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C', H', W'), computed in float32 at least whatever autocast does."""
        with without_autocast(x.device.type):
            x = x if x.dtype == torch.float64 else x.float()
            offset, modulation = self.conv_offset(x).split((18, 9), dim=1)
            weight = modulation.sigmoid()
            if x.device.type == "cpu":
                # torchvision reads at an invalid address there where an offset is NaN. Such a tap gets the
                # offset 0 and the weight NaN, so that NaN still comes out where it would have.
                unknown = offset.isnan()
                weight = weight.masked_fill(unknown.unflatten(1, (9, 2)).any(2), float("nan"))
                offset = offset.masked_fill(unknown, 0.0)
            out: Tensor = deform_conv2d(
                x,
                offset.contiguous(),
                self.weight,
                self.bias,
                stride=self.stride,
                padding=self.padding,
                mask=weight,
            )
            return out
