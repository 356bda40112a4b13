"""BEVFormer's attentions: temporal self-attention and spatial cross-attention, both deformable."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bevkd2.modeling.bev.geometry import NUM_QUEUES, History, VisiblePairs
from bevkd2.modeling.bev.layers import LayerOptions
from bevkd2.ops import ms_deform_attn_fused, ms_deform_attn_ragged


def direction_bias(num_heads: int, repeats: int, num_points: int) -> Tensor:
    """Returns offsets in one direction per head, the k-th point k + 1 cells away.

    Args:
        num_heads: M.
        repeats: levels times queues; all have the same offsets.
        num_points: P.

    Returns:
        (M * repeats * P * 2,) in the layout of the offsets' linear layer.
    """
    angle = torch.arange(num_heads, dtype=torch.float32) * (2.0 * math.pi / num_heads)
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
    direction = direction / direction.abs().amax(dim=-1, keepdim=True)
    steps = torch.arange(1, num_points + 1, dtype=torch.float32)
    bias = direction[:, None, None, :] * steps[None, None, :, None]
    return bias.expand(num_heads, repeats, num_points, 2).flatten()


class DeformableAttention(nn.Module):
    """Base of the deformable attentions: four projections, and the residual's dropout.

    At initialisation it attends uniformly to a fixed star of points, whatever the query is.
    """

    def __init__(self, options: LayerOptions, *, query_dim: int, num_sets: int, num_points: int) -> None:
        """Makes the projections.

        Args:
            options: of the layer.
            query_dim: channels that offsets and weights are made of.
            num_sets: levels times queues, each with points of its own.
            num_points: P, sampling points of a set.
        """
        super().__init__()
        embed_dim, num_heads = options.embed_dim, options.num_heads
        self.num_heads, self.num_points = num_heads, num_points
        per_query = num_heads * num_sets * num_points
        self.sampling_offsets = nn.Linear(query_dim, per_query * 2)
        self.attention_weights = nn.Linear(query_dim, per_query)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(options.dropout)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(direction_bias(num_heads, num_sets, num_points))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)


class SpatialCrossAttention(DeformableAttention):
    """Deformable attention on the visible (camera, cell) pairs, averaged over the cameras (BEVFormer, Eq. 3).

    Sampling point p belongs to reference point p % Z of the pillar. A cell that no camera sees gets the
    output projection's bias.
    """

    def __init__(self, options: LayerOptions, *, num_levels: int, num_points: int) -> None:
        """Makes the projections.

        Args:
            options: of the layer.
            num_levels: L, feature levels.
            num_points: P, sampling points per level; a multiple of the pillar's reference points.
        """
        super().__init__(options, query_dim=options.embed_dim, num_sets=num_levels, num_points=num_points)
        self.num_levels = num_levels

    def forward(
        self,
        query: Tensor,
        features: Tensor,
        spatial_shapes: list[tuple[int, int]],
        pairs: VisiblePairs,
        wants: frozenset[str] = frozenset(),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Attends and adds the residual.

        Args:
            query: (B, Q, C), without positional term.
            features: (B*N, S, C): every camera's levels, flattened and concatenated.
            spatial_shapes: (h, w) of every level.
            pairs: of this frame.
            wants: costly fields of :class:`bevkd2.modeling.knowledge.BEVKnowledge`.

        Returns:
            output: (B, Q, C).
            costly: where wanted, ``spatial_attention`` (B, Q, M, L, P) float32 after softmax over L*P, and
                ``spatial_offsets`` (B, Q, M, L, P, 2) in cells of each level.
        """
        batch, cells, _ = query.shape
        points = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).flatten(0, 1).unflatten(-1, (*points, 2))
        logits = self.attention_weights(query).flatten(0, 1).unflatten(-1, points)
        value = self.value_proj(features).unflatten(-1, (self.num_heads, -1))
        attended, weights = ms_deform_attn_ragged(
            value,
            spatial_shapes,
            pairs.reference_points,
            offsets,
            logits,
            pairs.row_splits,
            pairs.row_value,
            return_weights="spatial_attention" in wants,
        )
        output = self.output_proj(attended.unflatten(0, (batch, cells)))
        costly = {}
        if weights is not None:
            costly["spatial_attention"] = weights.unflatten(0, (batch, cells))
        if "spatial_offsets" in wants:
            costly["spatial_offsets"] = offsets.unflatten(0, (batch, cells))
        return query + self.dropout(output), costly


class TemporalSelfAttention(DeformableAttention):
    """Deformable attention over a queue of two grids (BEVFormer, section 3.4, Eq. 5).

    A sample without history attends twice to its own running queries. Each sample of a batch is treated by
    itself, whatever the others have.
    """

    def __init__(self, options: LayerOptions, *, num_points: int, bev_shape: tuple[int, int]) -> None:
        """Makes the projections.

        Args:
            options: of the layer.
            num_points: P, sampling points of each queue.
            bev_shape: rows (y) and columns (x) of the grid.
        """
        super().__init__(
            options, query_dim=NUM_QUEUES * options.embed_dim, num_sets=NUM_QUEUES, num_points=num_points
        )
        self.bev_shape = bev_shape

    def forward(
        self, query: Tensor, position: Tensor, history: History, wants: frozenset[str] = frozenset()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Attends and adds the residual.

        Args:
            query: (B, Q, C).
            position: (Q, C).
            history: of this forward pass.
            wants: costly fields of :class:`bevkd2.modeling.knowledge.BEVKnowledge`.

        Returns:
            output: (B, Q, C).
            costly: where wanted, ``temporal_attention`` (B, Q, M, 2, 1, P) float32 after softmax over P, and
                ``temporal_offsets`` (B, Q, M, 2, 1, P, 2) in cells.
        """
        queue = history.queue_for(query)
        context = torch.cat([queue[:, 0], query + position], dim=-1)
        value = self.value_proj(queue).flatten(0, 1).unflatten(-1, (self.num_heads, -1))
        offsets = self._by_queue(self.sampling_offsets(context), 2)
        attended, weights = ms_deform_attn_fused(
            value,
            [self.bev_shape],
            history.reference_points.flatten(0, 1).unsqueeze(2),
            offsets,
            self._by_queue(self.attention_weights(context)).squeeze(-1),
            num_queues=NUM_QUEUES,
            return_weights="temporal_attention" in wants,
        )
        costly = {}
        if weights is not None:
            costly["temporal_attention"] = _by_sample(weights)
        if "temporal_offsets" in wants:
            costly["temporal_offsets"] = _by_sample(offsets)
        return query + self.dropout(self.output_proj(attended)), costly

    def _by_queue(self, projected: Tensor, last: int = 1) -> Tensor:
        """Splits (B, Q, M*2*P*last), in the order head, queue, point, to (B*2, Q, M, 1, P, last)."""
        shaped = projected.unflatten(-1, (self.num_heads, NUM_QUEUES, 1, self.num_points, last))
        by_queue: Tensor = shaped.permute(0, 3, 1, 2, 4, 5, 6).flatten(0, 1)
        return by_queue


def _by_sample(by_queue: Tensor) -> Tensor:
    """Turns (B*2, Q, M, ...), queues within samples, to (B, Q, M, 2, ...)."""
    by_sample: Tensor = by_queue.unflatten(0, (-1, NUM_QUEUES)).movedim(1, 3)
    return by_sample
