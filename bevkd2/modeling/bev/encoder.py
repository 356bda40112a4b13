"""The BEV encoder: from camera features and history to the bird's-eye-view embedding."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bevkd2.modeling.bev.attention import SpatialCrossAttention, TemporalSelfAttention
from bevkd2.modeling.bev.geometry import History, VisiblePairs
from bevkd2.modeling.bev.layers import FeedForward, LayerOptions


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
        options: LayerOptions,
        *,
        num_layers: int,
        bev_shape: tuple[int, int],
        num_cameras: int,
        num_levels: int,
        num_level_embeddings: int,
        temporal_points: int,
        spatial_points: int,
        checkpointing: bool = False,
    ) -> None:
        """Builds the layers.

        Args:
            options: of every layer.
            num_layers: encoder layers.
            bev_shape: rows (y) and columns (x) of the grid.
            num_cameras: N.
            num_levels: L, feature levels that are read.
            num_level_embeddings: rows of the level table, at least L.
            temporal_points: sampling points of each queue.
            spatial_points: sampling points per level.
            checkpointing: recompute the layers in the backward pass.
        """
        super().__init__()
        self.checkpointing = checkpointing
        self.camera_embeddings = nn.Parameter(torch.randn(num_cameras, options.embed_dim))
        self.level_embeddings = nn.Parameter(torch.randn(num_level_embeddings, options.embed_dim))
        self.layers = nn.ModuleList(
            EncoderLayer(
                TemporalSelfAttention(options, num_points=temporal_points, bev_shape=bev_shape),
                SpatialCrossAttention(options, num_levels=num_levels, num_points=spatial_points),
                FeedForward(options),
                options.embed_dim,
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
        recomputes = self.checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.layers:
            arguments = (bev, position, tokens, spatial_shapes, pairs, history, wants)
            bev, fields = (
                checkpoint(layer, *arguments, use_reentrant=False) if recomputes else layer(*arguments)
            )
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
