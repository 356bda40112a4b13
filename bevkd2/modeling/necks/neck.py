"""The base class of necks."""

from __future__ import annotations

from torch import nn


class Neck(nn.Module):
    """Base of modules from backbone features, name -> (N, C_f, h, w), to a list of levels (N, C, h, w)."""

    strides: list[int]
    """Stride of each level in pixels, finest first."""
    out_channels: int
    """C of every level."""
