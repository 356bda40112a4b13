"""Small layers that several parts of BEVFormer use."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """What the layers of an encoder and of a decoder have in common."""

    embed_dim: int
    """C, channels of queries, values and outputs."""
    num_heads: int
    """M, attention heads."""
    ffn_dim: int
    """Hidden channels of the feed-forward part."""
    dropout: float
    """Probability, of the outputs of attentions and in the feed-forward part."""


class FeedForward(nn.Module):
    """Two linear layers with a residual."""

    def __init__(self, options: LayerOptions) -> None:
        super().__init__()
        self.linear1 = nn.Linear(options.embed_dim, options.ffn_dim)
        self.linear2 = nn.Linear(options.ffn_dim, options.embed_dim)
        self.dropout = nn.Dropout(options.dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., C) to (..., C)."""
        out: Tensor = x + self.dropout(self.linear2(self.dropout(self.linear1(x).relu())))
        return out


class BEVPosition(nn.Module):
    """Learned position of every cell, half of the channels from its column, half from its row."""

    def __init__(self, shape: tuple[int, int], embed_dim: int) -> None:
        """Makes the two tables.

        Args:
            shape: rows (y) and columns (x) of the grid.
            embed_dim: C, even.
        """
        super().__init__()
        self.row = nn.Parameter(torch.rand(shape[0], embed_dim // 2))
        self.column = nn.Parameter(torch.rand(shape[1], embed_dim // 2))

    def forward(self) -> Tensor:
        """Returns (H*W, C): channels of the column (x) first, then of the row (y)."""
        height, width = len(self.row), len(self.column)
        column = self.column[None].expand(height, -1, -1)
        row = self.row[:, None].expand(-1, width, -1)
        return torch.cat([column, row], dim=-1).flatten(0, 1)


def can_bus_embedding(embed_dim: int) -> nn.Sequential:
    """Returns the layers that embed the 18 numbers of ego motion, to be added to every BEV query.

    Args:
        embed_dim: C; they map (B, 18) to (B, C).
    """
    return nn.Sequential(
        nn.Linear(18, embed_dim // 2),
        nn.ReLU(),
        nn.Linear(embed_dim // 2, embed_dim),
        nn.ReLU(),
        nn.LayerNorm(embed_dim),
    )
