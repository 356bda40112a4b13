"""Initial weights of deformable attention (Deformable DETR, appendix A.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def direction_bias(num_heads: int, repeats: int, num_points: int) -> Tensor:
    """Offsets that point one way a head, the k-th point k + 1 cells away.

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


def init_deformable_attention(
    sampling_offsets: nn.Linear,
    attention_weights: nn.Linear,
    value_proj: nn.Linear,
    output_proj: nn.Linear,
    *,
    num_heads: int,
    num_points: int,
) -> None:
    """Starts with uniform attention on a fixed star of points, whatever the query says."""
    repeats = sampling_offsets.out_features // (num_heads * num_points * 2)
    nn.init.zeros_(sampling_offsets.weight)
    with torch.no_grad():
        sampling_offsets.bias.copy_(direction_bias(num_heads, repeats, num_points))
    nn.init.zeros_(attention_weights.weight)
    nn.init.zeros_(attention_weights.bias)
    for projection in (value_proj, output_proj):
        nn.init.xavier_uniform_(projection.weight)
        nn.init.zeros_(projection.bias)
