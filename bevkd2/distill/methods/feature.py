"""The base class of methods that compare feature maps, from whichever sources the config names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from fvcore.common.config import CfgNode as FvcoreNode
from torch import Tensor, nn

from bevkd2.distill.methods.base import DistillMethod
from bevkd2.distill.sources import FeaturePair, FeatureSource, knowledge_class, resolve_sources
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.modeling.knowledge import Knowledge
from bevkd2.ops import absolute_means, weighted_l2
from bevkd2.ops.precision import arithmetic_dtype

_KERNELS = {"conv1x1": 1, "conv3x3": 3}
ADAPTERS = (*_KERNELS, "auto", "none")


class FeatureMethod(DistillMethod[Knowledge]):
    """Base of methods on the feature maps of SOURCES (:mod:`bevkd2.distill.sources`).

    A subclass sets ``sources_default``, and ``adapter_default`` where the method maps the student's channels
    to the teacher's, and implements :meth:`compare`. Losses are summed or averaged over the maps as the
    paper of the method says.

    Args:
        cfg: the method's node: SOURCES, LAYER_MAP and, where the method has adapters, ADAPTER.
        student: shapes of the student's features.
        teacher: of the teacher's.

    Raises:
        ValueError: sources that the two do not share, or channels that differ without an adapter.
    """

    sources_default: ClassVar[tuple[str, ...]] = ("fpn",)
    """SOURCES unless the config names others."""
    adapter_default: ClassVar[str | None] = None
    """ADAPTER unless the config names another; None: the method has no adapters, and channels may differ."""
    adapter_std: ClassVar[float | None] = None
    """Deviation of the adapters' initial weights; None: torch's own."""
    resizes: ClassVar[bool] = True
    """Resize the teacher's maps to the student's size where the two saw other scales of the images."""

    def __init__(self, cfg: FvcoreNode, student: FeatureShapes, teacher: FeatureShapes) -> None:
        super().__init__(cfg, student, teacher)
        self.sources = resolve_sources(list(cfg.SOURCES), student, teacher, self.check, cfg.LAYER_MAP)
        self.knowledge = knowledge_class(self.sources)
        self.requires = frozenset[str]().union(*(source.requires for source in self.sources))
        if self.adapter_default is not None:
            kind = self.one_of(cfg, "ADAPTER", ADAPTERS)
            self.adapters = nn.ModuleList(self.make_adapter(kind, source) for source in self.sources)

    @classmethod
    def add_config(cls, node: FvcoreNode) -> None:
        """Adds WEIGHT, its schedule, SOURCES, LAYER_MAP and, where the method has adapters, ADAPTER."""
        super().add_config(node)
        # Feature maps: backbone.<name> | fpn | fpn.<level> | bev | bev.layers | bev.temporal | bev.spatial,
        # the last three also of one encoder layer: bev.layers.<i>
        node.SOURCES = list(cls.sources_default)
        node.LAYER_MAP = []  # [[student layer, teacher layer], ...]; []: spread evenly
        if cls.adapter_default is not None:
            # From the student's channels to the teacher's: "conv1x1" | "conv3x3" | "none" | "auto": conv1x1
            # where they differ
            node.ADAPTER = cls.adapter_default

    def make_adapter(self, kind: str, source: FeatureSource) -> nn.Module:
        """Makes the layer that maps the student's features of one source to the teacher's channels.

        Args:
            kind: the value of ADAPTER; "none", and "auto" where the channels are equal, is the
                identity.
            source: names the channels of both models.

        Raises:
            ValueError: "none" though the channels differ.
        """
        ours, theirs = source.student_channels, source.teacher_channels
        if kind == "none" or (kind == "auto" and ours == theirs):
            self.check(
                ours == theirs,
                "ADAPTER",
                f"none, but {source.name} has {ours} channels in the student and {theirs} in the teacher; "
                "use conv1x1",
            )
            return nn.Identity()
        kernel = _KERNELS.get(kind, 1)
        adapter = nn.Conv2d(ours, theirs, kernel, padding=kernel // 2)
        if self.adapter_std is not None:
            nn.init.normal_(adapter.weight, std=self.adapter_std)
            assert adapter.bias is not None
            nn.init.zeros_(adapter.bias)
        return adapter

    def pairs(self, student: Knowledge, teacher: Knowledge) -> list[FeaturePair]:
        """Reads the maps of both models, without adapters.

        Args:
            student: the student's knowledge.
            teacher: the teacher's.

        Returns:
            A pair of each source, in their order: (R, C, h, w) and (R, C', h, w).
        """
        return [source.read(student, teacher, self.resizes) for source in self.sources]

    def adapted(self, pairs: Sequence[FeaturePair]) -> list[Tensor]:
        """Runs the adapters.

        Args:
            pairs: of :meth:`pairs`, one of each source.

        Returns:
            The student's maps in the teacher's channels, (R, C', h, w) each.
        """
        return [adapter(pair.student) for adapter, pair in zip(self.adapters, pairs, strict=True)]

    def forward(self, student: Knowledge, teacher: Knowledge, targets: Any) -> Tensor | dict[str, Tensor]:
        """Compares the maps of all sources."""
        return self.compare(self.pairs(student, teacher), student, targets)

    def compare(
        self, pairs: Sequence[FeaturePair], student: Knowledge, targets: Any
    ) -> Tensor | dict[str, Tensor]:
        """Computes the loss of the maps; a subclass implements it, or ``forward`` instead.

        Args:
            pairs: in the order of ``self.sources``.
            student: the student's knowledge, for masks.
            targets: the student's, for masks.

        Returns:
            A scalar, or scalars by name.

        Raises:
            NotImplementedError: the subclass has neither.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither compare nor forward")


def summed_distance(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    scales: Sequence[float | Tensor],
    weights: Sequence[Tensor | None] | None = None,
    channel_weights: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Computes the sum over maps of scale * sum of weight * channel weight * (student - teacher)^2.

    Maps with as many rows go through :func:`bevkd2.ops.weighted_l2` together: one pass over the features.

    Args:
        student: maps (R, C, h, w); R may differ between images and BEV grids.
        teacher: of the same shapes.
        scales: of each map, a number or a scalar tensor without gradient.
        weights: (R, h, w) each, not negative; None: 1.
        channel_weights: (C,) or (R, C) each, not negative; None: 1.

    Returns:
        A scalar, float32 (float64 where a feature is).
    """
    groups: dict[tuple[int, torch.dtype, torch.dtype], list[int]] = {}
    for i, (one, other) in enumerate(zip(student, teacher, strict=True)):
        groups.setdefault((len(one), one.dtype, other.dtype), []).append(i)
    losses = []
    for chosen in groups.values():
        ours, theirs = [student[i] for i in chosen], [teacher[i] for i in chosen]
        dtype = arithmetic_dtype(ours[0], theirs[0])
        factors = [torch.as_tensor(scales[i], dtype=dtype, device=ours[0].device) for i in chosen]
        losses.append(
            weighted_l2(
                ours,
                theirs,
                torch.stack(factors)[:, None].expand(-1, len(ours[0])),
                weights=None if weights is None else [weights[i] for i in chosen],
                channel_weights=None if channel_weights is None else [channel_weights[i] for i in chosen],
            ).sum()
        )
    return torch.stack(losses).sum()


def spatial_attention(features: Tensor, temperature: float) -> Tensor:
    """Computes H W softmax over the cells of the mean absolute value over the channels, divided by T.

    Args:
        features: (R, C, h, w).
        temperature: T.

    Returns:
        (R, h, w) float32 (float64 where the features are); the mean of a row is 1.
    """
    return attention_of(absolute_means(features).pixels, temperature)


def attention_of(means: Tensor, temperature: float) -> Tensor:
    """Computes n softmax over the n values of a row, divided by T.

    Args:
        means: (R, ..), absolute means over channels or cells.
        temperature: T.

    Returns:
        Of the same shape; the mean of a row is 1.
    """
    values = means.flatten(1)
    weights: Tensor = values.shape[1] * (values / temperature).softmax(dim=1)
    return weights.view_as(means)
