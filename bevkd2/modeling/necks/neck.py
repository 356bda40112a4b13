"""What detectors know of any neck."""

from __future__ import annotations

from torch import nn


class Neck(nn.Module):
    """Base of modules from backbone features, name -> (N, C_f, h, w), to a list of levels (N, C, h, w)."""

    strides: list[int]
    """Pixels to a cell of each level, finest first."""
    out_channels: int
    """C of every level."""
