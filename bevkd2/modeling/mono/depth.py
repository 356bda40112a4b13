"""Depth as a distribution over bins, and its fusion with the regressed depth (PGD, arXiv 2107.14160)."""

from __future__ import annotations

import torch
from torch import Tensor


def depth_from_bins(logits: Tensor, unit: float) -> Tensor:
    """Computes the expectation of a distribution over evenly spaced depths (PGD, Eq. 1).

    Args:
        logits: (..., bins) before the softmax; bin k is the depth k * unit.
        unit: metres between bins.

    Returns:
        (...) metres.
    """
    values = unit * torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    # Not a matrix product: autocast would compute it in 16 bits, where 70 m is exact to half a metre only.
    return (logits.softmax(dim=-1) * values).sum(dim=-1)


def depth_confidence(logits: Tensor) -> Tensor:
    """Computes the sharpness of the distribution: the mean of its two largest probabilities.

    Args:
        logits: (..., bins) before the softmax, two bins at least.

    Returns:
        (...) in (0, 0.5].
    """
    return logits.softmax(dim=-1).topk(2, dim=-1).values.mean(dim=-1)


def predicted_depth(
    direct: Tensor, bins: Tensor | None, fuse_lambda: Tensor | None, unit: float
) -> tuple[Tensor, Tensor | None]:
    """Computes the depth that a head means: fused where it has a distribution, else the regressed one.

    Args:
        direct: (...) regressed depth in metres.
        bins: (..., bins) logits of the distribution; None where the head has none.
        fuse_lambda: scalar of :func:`fuse_depth`; needed with ``bins``.
        unit: metres between bins.

    Returns:
        (...) metres each: the depth, and the distribution's expectation or None.

    Raises:
        ValueError: ``bins`` without ``fuse_lambda``.
    """
    if bins is None:
        return direct, None
    if fuse_lambda is None:
        raise ValueError(
            "predicted_depth: the head has depth bins, so its fuse_lambda is needed to fuse the depths"
        )
    probabilistic = depth_from_bins(bins, unit)
    return fuse_depth(direct, probabilistic, fuse_lambda), probabilistic


def fuse_depth(direct: Tensor, probabilistic: Tensor, fuse_lambda: Tensor) -> Tensor:
    """Averages both estimates with one learned weight (PGD, Eq. 2).

    Args:
        direct: (...) regressed depth in metres.
        probabilistic: (...) of :func:`depth_from_bins`.
        fuse_lambda: scalar; its sigmoid is the direct depth's weight.

    Returns:
        (...) metres.
    """
    weight = fuse_lambda.sigmoid()
    return weight * direct + (1 - weight) * probabilistic
