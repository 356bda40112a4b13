"""The BEV encoder: from camera features and history to the bird's-eye-view embedding."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from bevkd2.modeling.bev.geometry import VisiblePairs
from bevkd2.modeling.bev.layers import FeedForward
from bevkd2.modeling.bev.spatial_attention import SpatialCrossAttention
from bevkd2.modeling.bev.temporal_attention import History, TemporalSelfAttention


@dataclasses.dataclass
class EncoderOutput:
    """B samples, Q cells."""

    bev_embed: Tensor
    """(B, Q, C)."""
    costly: dict[str, list[Tensor]]
    """The wanted costly fields of :class:`bevkd2.modeling.knowledge.BEVKnowledge`, one tensor per layer."""


class EncoderLayer(nn.Module):
    """Temporal self-attention, spatial cross-attention, feed-forward; each followed by a LayerNorm."""

    def __init__(
        self,
        temporal_attention: TemporalSelfAttention,
        spatial_attention: SpatialCrossAttention,
        ffn: FeedForward,
        embed_dim: int,
    ) -> None:
        super().__init__()
        self.temporal_attention = temporal_attention
        self.temporal_norm = nn.LayerNorm(embed_dim)
        self.spatial_attention = spatial_attention
        self.spatial_norm = nn.LayerNorm(embed_dim)
        self.ffn = ffn
        self.ffn_norm = nn.LayerNorm(embed_dim)

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        tokens: Tensor,
        spatial_shapes: list[tuple[int, int]],
        pairs: VisiblePairs,
        history: History,
        wants: frozenset[str] = frozenset(),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Runs the layer.

        Args:
            query: (B, Q, C).
            position: (Q, C).
            tokens: (B*N, S, C).
            spatial_shapes: (h, w) of every level.
            pairs: what every camera sees.
            history: previous BEV and initial queries.
            wants: costly fields of :class:`bevkd2.modeling.knowledge.BEVKnowledge`.

        Returns:
            The new query, and the wanted fields of this layer by name.
        """
        query, temporal = self.temporal_attention(query, position, history, wants)
        after_temporal = self.temporal_norm(query)
        query, spatial = self.spatial_attention(after_temporal, tokens, spatial_shapes, pairs, wants)
        after_spatial = self.spatial_norm(query)
        output = self.ffn_norm(self.ffn(after_spatial))
        outputs = {
            "temporal_outputs": after_temporal,
            "spatial_outputs": after_spatial,
            "layer_outputs": output,
        }
        wanted = {name: value for name, value in outputs.items() if name in wants}
        return output, temporal | spatial | wanted


class BEVEncoder(nn.Module):
    """BEVFormer's encoder (BEVFormer, section 3.1)."""

    def __init__(
        self,
        *,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        bev_shape: tuple[int, int],
        num_cameras: int,
        num_levels: int,
        num_level_embeddings: int,
        temporal_points: int,
        spatial_points: int,
    ) -> None:
        """Builds the layers.

        Args:
            embed_dim: C.
            num_layers: encoder layers.
            num_heads: M.
            ffn_dim: hidden channels of the feed-forward part.
            dropout: probability, everywhere.
            bev_shape: rows (y) and columns (x) of the grid.
            num_cameras: N.
            num_levels: L, feature levels that are read.
            num_level_embeddings: rows of the level table, at least L.
            temporal_points: sampling points of each queue.
            spatial_points: sampling points per level.
        """
        super().__init__()
        self.camera_embeddings = nn.Parameter(torch.randn(num_cameras, embed_dim))
        self.level_embeddings = nn.Parameter(torch.randn(num_level_embeddings, embed_dim))
        common: dict[str, Any] = {"embed_dim": embed_dim, "num_heads": num_heads, "dropout": dropout}
        self.layers = nn.ModuleList(
            EncoderLayer(
                TemporalSelfAttention(**common, num_points=temporal_points, bev_shape=bev_shape),
                SpatialCrossAttention(**common, num_levels=num_levels, num_points=spatial_points),
                FeedForward(embed_dim, ffn_dim, dropout),
                embed_dim,
            )
            for _ in range(num_layers)
        )

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        features: list[Tensor],
        pairs: VisiblePairs,
        history: History,
        wants: frozenset[str] = frozenset(),
    ) -> EncoderOutput:
        """Runs all layers.

        Args:
            queries: (B, Q, C), without position.
            position: (Q, C).
            features: (B, N, C, h, w), one per level, finest first.
            pairs: what every camera sees.
            history: previous BEV and queries.
            wants: costly fields of :class:`bevkd2.modeling.knowledge.BEVKnowledge`.
        """
        tokens, spatial_shapes = self._flatten(features)
        bev = queries
        costly: defaultdict[str, list[Tensor]] = defaultdict(list)
        for layer in self.layers:
            bev, fields = layer(bev, position, tokens, spatial_shapes, pairs, history, wants)
            for name, value in fields.items():
                costly[name].append(value)
        return EncoderOutput(bev, dict(costly))

    def _flatten(self, features: list[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Adds camera and level embeddings; returns (B*N, S, C) and the levels' shapes."""
        tokens = []
        for level, feature in enumerate(features):
            camera = self.camera_embeddings[:, None]
            flat = feature.flatten(3).transpose(2, 3)  # (B, N, h*w, C)
            tokens.append(flat + camera.to(flat.dtype) + self.level_embeddings[level].to(flat.dtype))
        shapes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        return torch.cat(tokens, dim=2).flatten(0, 1), shapes
