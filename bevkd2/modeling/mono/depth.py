"""Depth as a distribution over bins, and its fusion with the regressed depth (PGD, arXiv 2107.14160)."""

from __future__ import annotations

import torch
from torch import Tensor


def depth_from_bins(logits: Tensor, unit: float) -> Tensor:
    """The expectation of a distribution over evenly spaced depths (PGD, Eq. 1).

    Args:
        logits: (..., bins) before the softmax; bin k stands for the depth k * unit.
        unit: metres between bins.

    Returns:
        (...) metres.
    """
    values = unit * torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    # Not a matrix product, which autocast would make one of 16 bits: 70 m would be read to half a metre.
    return (logits.softmax(dim=-1) * values).sum(dim=-1)


def depth_confidence(logits: Tensor) -> Tensor:
    """How sharp the distribution is: the mean of its two largest probabilities.

    Args:
        logits: (..., bins) before the softmax, two bins at least.

    Returns:
        (...) in (0, 0.5].
    """
    return logits.softmax(dim=-1).topk(2, dim=-1).values.mean(dim=-1)


def fuse_depth(direct: Tensor, probabilistic: Tensor, fuse_lambda: Tensor) -> Tensor:
    """Weighs both estimates by one learned number (PGD, Eq. 2).

    Args:
        direct: (...) regressed depth in metres.
        probabilistic: (...) of :func:`depth_from_bins`.
        fuse_lambda: scalar; its sigmoid is the direct depth's weight.

    Returns:
        (...) metres.
    """
    weight = fuse_lambda.sigmoid()
    return weight * direct + (1 - weight) * probabilistic
