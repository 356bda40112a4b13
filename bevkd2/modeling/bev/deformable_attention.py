"""Projections of deformable attention, and their initial weights (Deformable DETR, appendix A.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


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

    def __init__(
        self,
        *,
        query_dim: int,
        embed_dim: int,
        num_heads: int,
        num_sets: int,
        num_points: int,
        dropout: float,
    ) -> None:
        """Makes the projections.

        Args:
            query_dim: channels that offsets and weights are made of.
            embed_dim: C, channels of values and output.
            num_heads: M.
            num_sets: levels times queues, each with points of its own.
            num_points: P, sampling points of a set.
            dropout: probability, of the output.
        """
        super().__init__()
        self.num_heads, self.num_points = num_heads, num_points
        per_query = num_heads * num_sets * num_points
        self.sampling_offsets = nn.Linear(query_dim, per_query * 2)
        self.attention_weights = nn.Linear(query_dim, per_query)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(direction_bias(num_heads, num_sets, num_points))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
