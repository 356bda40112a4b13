"""BEV response distillation (structured distillation, Eq. 7-8)."""

from __future__ import annotations

from typing import Any

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor

from bevkd2.distill.methods.base import register_method
from bevkd2.distill.methods.structured import StructuredMethod
from bevkd2.distill.sources import FeaturePair, resolve_sources
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import BEVKnowledge
from bevkd2.ops import absolute_means, bev_response_l2


@register_method
class BEVResponse(StructuredMethod):
    """Computes the distance of the BEV responses: the mean absolute BEV embedding over the channels.

    The widths of the two may differ. SOURCES adds the responses of earlier layers, or of the layers'
    attention. With DISTANCE kl, the responses of a sample become a distribution over its cells by a softmax,
    in which a cell counts as COUNT and UNSEEN say; REDUCTION sum averages the samples' divergences, and cell
    and mean divide them by the number of counted cells.

    Args:
        cfg: the method's node: that of :class:`StructuredMethod`, SOURCES and LAYER_MAP.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: a setting that cannot be, or BEV grids that differ.
    """

    node = "BEV_RESPONSE"

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.sources = resolve_sources(list(cfg.SOURCES), student, teacher, self.check, cfg.LAYER_MAP)
        images = [source.name for source in self.sources if source.plane == "image"]
        self.check(
            not images,
            "SOURCES",
            f"{', '.join(images)} lies in images; expected bev, bev.layers, bev.temporal or bev.spatial",
        )
        self.requires = frozenset({"bev_mask"} | {source.field for source in self.sources})

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds the keys of structured distillation, SOURCES and LAYER_MAP."""
        super().add_config(node)
        # "bev" (Eq. 7) | "bev.layers" | "bev.temporal" | "bev.spatial", also of one layer: "bev.layers.0"
        node.SOURCES = ["bev"]
        node.LAYER_MAP = []  # [[student layer, teacher layer], ...]; []: spread evenly

    def forward(self, student: BEVKnowledge, teacher: BEVKnowledge, targets: Any) -> Tensor:
        """Returns the loss."""
        cells = self.cells(student)
        pairs = [source.read(student, teacher) for source in self.sources]
        if self.distance == "kl":
            losses = [self._divergence(pair, cells) for pair in pairs]
        else:
            losses = [self._distance(pair, cells) for pair in pairs]
        return self.over_layers(torch.stack(losses), cells)

    def _distance(self, pair: FeaturePair, cells: Tensor | None) -> Tensor:
        mask = None if cells is None else cells.unflatten(1, pair.shape)
        return bev_response_l2(pair.student, pair.teacher, mask, reduction=self.reduction)

    def _divergence(self, pair: FeaturePair, cells: Tensor | None) -> Tensor:
        """Returns the divergence of the softmaxes over the cells; 0 for a sample without a counted cell."""
        ours, theirs = (
            absolute_means(features).pixels.flatten(1) for features in (pair.student, pair.teacher)
        )
        counts = torch.ones_like(ours) if cells is None else cells.to(ours.dtype)
        total = counts.sum()
        # A sample that counts no cell has all of them, at weight 0.
        prior = torch.where(counts.sum(dim=1, keepdim=True) > 0, counts, 1.0).log()
        ours, theirs = ((response + prior).log_softmax(dim=1) for response in (ours, theirs))
        terms = torch.where(counts > 0, theirs.exp() * (theirs - ours), 0.0)
        divided_by = len(ours) if self.reduction == "sum" else total.clamp(min=1)
        return terms.sum() / divided_by
