"""RKD: distances and angles between the images of a batch (Park et al., CVPR 2019, arXiv 1904.05068)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.masks import draw_content
from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.relations import RelationMethod, relative_distances
from bevkd2.distill.sources import FeaturePair
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.ops.precision import widen


@register_method
class RKD(RelationMethod):
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


def _embedding(features: Tensor, content: Tensor | None) -> Tensor:
    """Returns (R, C): the mean over the cells of the image."""
    features = widen(features)
    if content is None:
        return features.mean(dim=(2, 3))
    weights = content.to(features.dtype)
    summed = torch.einsum("rchw,rhw->rc", features, weights)
    return summed / weights.sum(dim=(1, 2)).clamp(min=1)[:, None]


def _cosines(embeddings: Tensor) -> Tensor:
    """Returns (R, R, R): of row i, the cosines between its differences from rows j and k."""
    differences = F.normalize(embeddings[None] - embeddings[:, None], dim=2)
    return differences @ differences.transpose(1, 2)
