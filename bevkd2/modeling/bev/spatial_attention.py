"""Spatial cross-attention: every BEV cell attends to the cameras that see its pillar."""

from __future__ import annotations

from torch import Tensor

from bevkd2.modeling.bev.deformable_attention import DeformableAttention
from bevkd2.modeling.bev.geometry import VisiblePairs
from bevkd2.ops import ms_deform_attn_ragged


class SpatialCrossAttention(DeformableAttention):
    """Deformable attention on the visible (camera, cell) pairs, averaged over the cameras (BEVFormer, Eq. 3).

    Sampling point p belongs to reference point p % Z of the pillar. A cell that no camera sees gets the
    output projection's bias.
    """

    def __init__(
        self, *, embed_dim: int, num_heads: int, num_levels: int, num_points: int, dropout: float
    ) -> None:
        """Makes the projections.

        Args:
            embed_dim: C.
            num_heads: M.
            num_levels: L, feature levels.
            num_points: P, sampling points per level; a multiple of the pillar's reference points.
            dropout: probability, of the output.
        """
        super().__init__(
            query_dim=embed_dim,
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_sets=num_levels,
            num_points=num_points,
            dropout=dropout,
        )
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
