"""Raw depths and sizes of a head to metres, by typical depths and sizes of the classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class BoxPrior(nn.Module):
    """Depth as an exponential (FCOS3D) or around a mean (PGD), sizes as factors of a class's typical ones.

    Where priors differ by class, the class is the most likely one of the same location.
    """

    depth: Tensor | None
    size: Tensor | None

    def __init__(
        self,
        num_classes: int,
        depth_priors: Sequence[Sequence[float]] = (),
        size_priors: Sequence[Sequence[float]] = (),
    ) -> None:
        """Checks and keeps the priors.

        Args:
            num_classes: K.
            depth_priors: mean and deviation (m) in class order, or one pair for all classes; empty: the
                depth is the exponential of the raw number.
            size_priors: length, height, width (m) in class order; empty: the size is the exponential of
                the raw numbers.

        Raises:
            ValueError: a wrong number of priors, or numbers in one.
        """
        super().__init__()
        _check("DEPTH_PRIORS", depth_priors, 2, sorted({0, 1, num_classes}))
        _check("SIZE_PRIORS", size_priors, 3, [0, num_classes])
        depth = torch.tensor(depth_priors, dtype=torch.float32) if len(depth_priors) else None
        size = torch.tensor(size_priors, dtype=torch.float32) if len(size_priors) else None
        self.register_buffer("depth", depth, persistent=False)
        self.register_buffer("size", size, persistent=False)

    def forward(self, depth: Tensor, size: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Converts raw maps to metres.

        Args:
            depth: (B, 1, h, w).
            size: (B, 3, h, w) for length, height, width.
            logits: (B, K, h, w) of the classes.

        Returns:
            Both in metres.
        """
        classes = logits.argmax(dim=1)
        return self.metric_depth(depth, classes), self._metric_size(size, classes)

    def metric_depth(self, depth: Tensor, classes: Tensor) -> Tensor:
        """Converts raw depths to metres.

        Args:
            depth: (B, 1, h, w).
            classes: (B, h, w) int64: the most likely class.

        Returns:
            (B, 1, h, w): by the mean and deviation of the class; without priors of the depth, the
            exponential.
        """
        if self.depth is None:
            return depth.exp()
        rows = self.depth[classes if len(self.depth) > 1 else torch.zeros_like(classes)]
        mean, deviation = rows.movedim(-1, 1).split(1, dim=1)
        metric: Tensor = mean + depth * deviation
        return metric

    def _metric_size(self, size: Tensor, classes: Tensor) -> Tensor:
        if self.size is None:
            return size.exp()
        return self.size[classes].movedim(-1, 1) * size.exp()


def _check(key: str, priors: Sequence[Sequence[float]], numbers: int, counts: Sequence[int]) -> None:
    if len(priors) not in counts or any(len(row) != numbers for row in priors):
        raise ValueError(
            f"MODEL.FCOS3D.{key} has {len(priors)} rows of {sorted({len(row) for row in priors})} numbers, "
            f"expected {' or '.join(map(str, counts))} rows of {numbers}, in the order of DATASETS.CLASSES; "
            "`bevkd2 compute-priors` computes them, [] means none"
        )


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
