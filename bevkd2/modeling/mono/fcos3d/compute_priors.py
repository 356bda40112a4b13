"""Typical depths and sizes of classes, from annotations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class BoxPriors:
    """Priors that heads add to or multiply with their raw outputs, in the order of the classes."""

    counts: list[int]
    """Objects of each class."""
    depths: list[tuple[float, float]]
    """Mean and standard deviation (m) of each class's depths."""
    sizes: list[tuple[float, float, float]]
    """Mean length, height, width (m) of each class."""
    shared_depth: tuple[float, float]
    """Mean and standard deviation (m) of all objects' depths."""


def compute_priors(
    depths: Tensor, published_sizes: Tensor, labels: Tensor, class_names: Sequence[str]
) -> BoxPriors:
    """Averages annotations per class; deviations are population deviations.

    Args:
        depths: (M,) metres.
        published_sizes: (M, 3) length, height, width in metres.
        labels: (M,) int64.
        class_names: in the order of the labels.

    Raises:
        ValueError: a class without two objects of different depths; it is named.
    """
    members = [labels == label for label in range(len(class_names))]
    moments = [_moments(depths[mask]) for mask in members]
    lacking = [name for name, (_, deviation) in zip(class_names, moments, strict=True) if not deviation > 0]
    if lacking:
        raise ValueError(
            f"classes {lacking} have fewer than two objects of different depths among {len(labels)}; add "
            "splits to DATASETS.TRAIN that have them, or leave them out of DATASETS.CLASSES"
        )
    means = [published_sizes[mask].double().mean(dim=0).tolist() for mask in members]
    return BoxPriors(
        counts=[int(mask.sum()) for mask in members],
        depths=moments,
        sizes=[(length, height, width) for length, height, width in means],
        shared_depth=_moments(depths),
    )


def _moments(values: Tensor) -> tuple[float, float]:
    """Returns mean and standard deviation; zeros where there are no values."""
    if not len(values):
        return 0.0, 0.0
    deviation, mean = torch.std_mean(values.double(), correction=0)
    return mean.item(), deviation.item()
