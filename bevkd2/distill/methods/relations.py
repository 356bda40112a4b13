"""The base class of methods that compare the rows of a batch with each other.

Rows are images (every camera of a multi-view sample is one), or samples where a map is a BEV grid. Relations
are those within the batch of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from bevkd2.distill.methods.feature import FeatureMethod
from bevkd2.distill.sources import FeaturePair

_EPSILON = 1e-12  # of squared distances, as published


class RelationMethod(FeatureMethod):
    """Base of methods that compare rows of a batch with each other."""

    least_rows: ClassVar[int] = 2

    def check_rows(self, pairs: Sequence[FeaturePair]) -> None:
        """Checks that the batch has enough rows.

        Args:
            pairs: of :meth:`pairs`; R is compared with ``least_rows``.

        Raises:
            ValueError: it has not.
        """
        for pair in pairs:
            rows = len(pair.student)
            if rows < self.least_rows:
                kind = "images" if pair.source.plane == "image" else "samples"
                raise ValueError(
                    f"DISTILL.{self.node}: {pair.source.name} has {rows} of the {kind} whose relations it "
                    f"compares, expected {self.least_rows} at least in each process; raise "
                    f"SOLVER.IMS_PER_BATCH to {self.least_rows} times the number of processes"
                )


def relative_distances(embeddings: Tensor) -> Tensor:
    """Computes the distances between embeddings, divided by the mean of those above 0.

    Args:
        embeddings: (R, C).

    Returns:
        (R, R); 0 on the diagonal.
    """
    squares = embeddings.square().sum(dim=1)
    squared = (squares[:, None] + squares[None] - 2 * embeddings @ embeddings.T).clamp(min=_EPSILON)
    off_diagonal = 1 - torch.eye(len(embeddings), dtype=squared.dtype, device=squared.device)
    distances = squared.sqrt() * off_diagonal
    return distances / (distances.sum() / (distances > 0).sum().clamp(min=1))
