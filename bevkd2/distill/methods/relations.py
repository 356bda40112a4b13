"""Relations between the rows of a batch: SP (arXiv 1907.09682) and RKD (arXiv 1904.05068).

Rows are images (every camera of a multi-view sample is one), or samples where a map is a BEV grid. Relations
are those within the batch of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.masks import draw_content
from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.feature import FeatureMethod
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.ops.precision import widen

_EPSILON = 1e-12  # of squared distances, as published


class _RelationMethod(FeatureMethod):
    """Base of methods that compare rows of a batch with each other."""

    least_rows: ClassVar[int] = 2

    def check_rows(self, pairs: Sequence[FeaturePair]) -> None:
        """Checks that the batch has enough rows.

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


@register_method
class SP(_RelationMethod):
    """Computes the distance of the similarities of rows (Tung and Mori, ICCV 2019, Eq. 2 to 4).

    L = sum over maps of 1 / R^2 |G_s - G_t|^2, where G is F F^T of the R flattened maps with each row divided
    by its norm. Channels may differ, and there is no adapter; padding counts as any cell. The weight is
    RepDistiller's.
    """

    node = "SP"
    resizes = False

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods, with the published weight."""
        super().add_config(node)
        node.WEIGHT = 3000.0  # multiplied by DISTILL.FACTOR

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> Tensor:
        """Returns the loss.

        Raises:
            ValueError: a batch of one row.
        """
        self.check_rows(pairs)
        losses = []
        with torch.autocast(pairs[0].student.device.type, enabled=False):
            for pair in pairs:
                difference = _similarities(pair.student) - _similarities(pair.teacher)
                losses.append(difference.square().sum() / len(pair.student) ** 2)
        return torch.stack(losses).sum()


@register_method
class RKD(_RelationMethod):
    """Computes the distance of distances and of angles between embeddings (Park et al., CVPR 2019).

    L = sum over maps of DISTANCE_WEIGHT * smooth-L1 of the distances of pairs, each model's divided by their
    mean (Eq. 4 and 5), + ANGLE_WEIGHT * smooth-L1 of the cosines of triplets (Eq. 6 and 7), both means over
    all R^2 and R^3 entries. An embedding is the mean of a map over the image, without its padding: the
    paper's are image descriptors, which detectors lack. Channels may differ, and there is no adapter. As
    published, the derivative of a distance of 0 is 0.

    Args:
        cfg: the method's node.
        student: shapes of the student's features.
        teacher: of the teacher's.
    """

    node = "RKD"
    least_rows = 3  # the one distance of two rows, divided by its mean, is 1

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.distance_weight, self.angle_weight = float(cfg.DISTANCE_WEIGHT), float(cfg.ANGLE_WEIGHT)

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of feature methods, and the published weights of both parts."""
        super().add_config(node)
        node.DISTANCE_WEIGHT = 25.0  # of the distances of pairs
        node.ANGLE_WEIGHT = 50.0  # of the cosines of triplets; 0: none

    def compare(self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any) -> Tensor:
        """Returns the loss.

        Raises:
            ValueError: a batch of too few rows.
        """
        self.check_rows(pairs)
        content = draw_content(self.sources, [pair.shape for pair in pairs], student)
        losses = []
        with torch.autocast(pairs[0].student.device.type, enabled=False):
            for pair, mask in zip(pairs, content, strict=True):
                ours, theirs = _embedding(pair.student, mask), _embedding(pair.teacher, mask)
                distances = relative_distances(ours), relative_distances(theirs)
                losses.append(self.distance_weight * F.smooth_l1_loss(*distances))
                if self.angle_weight:  # R^3 numbers
                    losses.append(self.angle_weight * F.smooth_l1_loss(_cosines(ours), _cosines(theirs)))
        return torch.stack(losses).sum()


def _similarities(features: Tensor) -> Tensor:
    """Returns (R, R): products of rows, each row of norm 1."""
    flat = widen(features).flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


def _embedding(features: Tensor, content: Tensor | None) -> Tensor:
    """Returns (R, C): the mean over the cells of the image."""
    features = widen(features)
    if content is None:
        return features.mean(dim=(2, 3))
    weights = content.to(features.dtype)
    summed = torch.einsum("rchw,rhw->rc", features, weights)
    return summed / weights.sum(dim=(1, 2)).clamp(min=1)[:, None]


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


def _cosines(embeddings: Tensor) -> Tensor:
    """Returns (R, R, R): of row i, the cosines between its differences from rows j and k."""
    differences = F.normalize(embeddings[None] - embeddings[:, None], dim=2)
    return differences @ differences.transpose(1, 2)
