"""The object decoder: queries read the bird's-eye view and refine their boxes layer by layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevkd2.modeling.bev.attention import DeformableAttention
from bevkd2.modeling.bev.layers import FeedForward, LayerOptions
from bevkd2.ops import ms_deform_attn_fused

CODE_SIZE = 10


@dataclasses.dataclass
class DecoderOutput:
    """D layers, B samples, Q object queries, K classes."""

    class_logits: Tensor
    """(D, B, Q, K) float32."""
    box_codes: Tensor
    """(D, B, Q, 10) float32: see :mod:`bevkd2.modeling.bev.box_coder`."""
    states: list[Tensor]
    """(B, Q, C), one per layer."""
    reference_points: list[Tensor]
    """(B, Q, 3) float32 x, y, z as fractions of the range: the initial ones, then after every layer."""


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Computes the logit of probabilities.

    Args:
        x: of any shape; values outside [0, 1] are clamped to it.
        eps: x and 1 - x are kept at least that large, so that the result is finite.

    Returns:
        Of the same shape.
    """
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


class DeformableCrossAttention(DeformableAttention):
    """Deformable attention of object queries on one grid, with the residual."""

    def __init__(self, options: LayerOptions, num_points: int) -> None:
        super().__init__(options, query_dim=options.embed_dim, num_sets=1, num_points=num_points)

    def forward(
        self, query: Tensor, position: Tensor, bev: Tensor, reference_xy: Tensor, bev_shape: tuple[int, int]
    ) -> Tensor:
        """Maps (B, Q, C) queries and positions, (B, H*W, C) grid, (B, Q, 2) references to (B, Q, C)."""
        located = query + position
        points = (self.num_heads, 1, self.num_points)
        attended, _ = ms_deform_attn_fused(
            self.value_proj(bev).unflatten(-1, (self.num_heads, -1)),
            [bev_shape],
            reference_xy.unsqueeze(2),
            self.sampling_offsets(located).unflatten(-1, (*points, 2)),
            self.attention_weights(located).unflatten(-1, points),
        )
        out: Tensor = query + self.dropout(self.output_proj(attended))
        return out


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward; each followed by a LayerNorm."""

    def __init__(self, options: LayerOptions, num_points: int) -> None:
        super().__init__()
        embed_dim, dropout = options.embed_dim, options.dropout
        self.self_attention = nn.MultiheadAttention(
            embed_dim, options.num_heads, dropout=dropout, batch_first=True
        )
        self.dropout = nn.Dropout(dropout)
        self.self_norm = nn.LayerNorm(embed_dim)
        self.cross_attention = DeformableCrossAttention(options, num_points)
        self.cross_norm = nn.LayerNorm(embed_dim)
        self.ffn = FeedForward(options)
        self.ffn_norm = nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.self_attention.out_proj.weight)

    def forward(
        self, query: Tensor, position: Tensor, bev: Tensor, reference_xy: Tensor, bev_shape: tuple[int, int]
    ) -> Tensor:
        """Maps (B, Q, C) to (B, Q, C)."""
        located = query + position
        attended, _ = self.self_attention(located, located, query, need_weights=False)
        query = self.self_norm(query + self.dropout(attended))
        query = self.cross_norm(self.cross_attention(query, position, bev, reference_xy, bev_shape))
        out: Tensor = self.ffn_norm(self.ffn(query))
        return out


class ObjectDecoder(nn.Module):
    """Deformable DETR's decoder on the bird's-eye view, with box refinement (BEVFormer, section 3.5)."""

    range_low: Tensor
    range_extent: Tensor

    def __init__(
        self,
        options: LayerOptions,
        *,
        num_layers: int,
        num_points: int,
        num_classes: int,
        pc_range: Sequence[float],
        ray_heading: bool = False,
    ) -> None:
        """Builds the layers and the prediction branches.

        Args:
            options: of every layer.
            num_layers: D.
            num_points: sampling points of the cross-attention.
            num_classes: K.
            pc_range: x0, y0, z0, x1, y1, z1 in metres that reference points are fractions of.
            ray_heading: the branches predict headings relative to the ray from the origin to the predicted
                centre, as pictures show them; box codes are the same as without.
        """
        super().__init__()
        embed_dim = options.embed_dim
        self.ray_heading = ray_heading
        self.layers = nn.ModuleList(DecoderLayer(options, num_points) for _ in range(num_layers))
        self.reference_points = nn.Linear(embed_dim, 3)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)
        self.class_branches = nn.ModuleList(_class_branch(embed_dim, num_classes) for _ in range(num_layers))
        self.box_branches = nn.ModuleList(_box_branch(embed_dim) for _ in range(num_layers))
        limits = torch.tensor(list(pc_range), dtype=torch.float32)
        self.register_buffer("range_low", limits[:3], persistent=False)
        self.register_buffer("range_extent", limits[3:] - limits[:3], persistent=False)

    def forward(
        self,
        object_queries: Tensor,
        bev: Tensor,
        bev_shape: tuple[int, int],
        reference_points: Tensor | None = None,
        velocities: Tensor | None = None,
    ) -> DecoderOutput:
        """Decodes objects.

        Args:
            object_queries: (Q, 2C), or one set per sample (B, Q, 2C): position first, then content.
            bev: (B, H*W, C).
            bev_shape: (H, W).
            reference_points: (B, Q, 3) where the queries begin, as fractions of the range; None: where this
                decoder's own layer puts their positions.
            velocities: (B, 2, H, W) vx, vy of every cell (m/s), to which those of the box branches are added
                at the predicted centres; None: the branches' are the velocities.
        """
        # Contiguous: from the stride of two halves torch.export would conclude that the batch is not 2.
        halves = (half.contiguous() for half in object_queries.chunk(2, dim=-1))
        position, query = (half.expand(bev.shape[0], -1, -1) for half in halves)
        if reference_points is None:
            reference_points = self.reference_points(position).float().sigmoid()
        reference = reference_points
        states, references, logits, codes = [], [reference], [], []
        for layer, class_branch, box_branch in zip(
            self.layers, self.class_branches, self.box_branches, strict=True
        ):
            query = layer(query, position, bev, reference[..., :2], bev_shape)
            code, center = self._refine(box_branch(query).float(), reference, velocities)
            logits.append(class_branch(query).float())
            codes.append(code)
            states.append(query)
            reference = center.detach()
            references.append(reference)
        return DecoderOutput(torch.stack(logits), torch.stack(codes), states, references)

    def _refine(self, output: Tensor, reference: Tensor, velocities: Tensor | None) -> tuple[Tensor, Tensor]:
        """Moves the reference by the branch's output; returns the box code (metres) and the new reference."""
        move = torch.cat([output[..., 0:2], output[..., 4:5]], dim=-1)
        center = (inverse_sigmoid(reference) + move).sigmoid()
        metres = center * self.range_extent + self.range_low
        tail = output[..., 5:]
        if self.ray_heading:
            heading = _from_ray(output[..., 6:8], metres[..., :2].detach())
            tail = torch.cat([output[..., 5:6], heading, output[..., 8:]], dim=-1)
        if velocities is not None:
            places = 2 * center[:, :, None, :2].detach() - 1
            there = F.grid_sample(velocities.float(), places, padding_mode="border", align_corners=False)
            tail = torch.cat([tail[..., :3], tail[..., 3:] + there[..., 0].transpose(1, 2)], dim=-1)
        code = torch.cat([metres[..., :2], output[..., 2:4], metres[..., 2:], tail], dim=-1)
        return code, center

    @torch.no_grad()
    def init_grid_queries(self, object_queries: Tensor) -> None:
        """Lets the initial reference points cover the range as a regular grid, at half its height.

        The first three position channels of a query become its reference's logits, and the reference layer
        starts as the projection on them; everything stays learnable and keeps the published shapes.

        Args:
            object_queries: (Q, 2C), changed in place.
        """
        count = len(object_queries)
        columns = math.ceil(math.sqrt(count))
        rows = math.ceil(count / columns)
        index = torch.arange(count, device=object_queries.device)
        x = (index % columns + 0.5) / columns
        y = (torch.div(index, columns, rounding_mode="floor") + 0.5) / rows
        object_queries[:, :3] = inverse_sigmoid(torch.stack([x, y, torch.full_like(x, 0.5)], dim=-1))
        nn.init.zeros_(self.reference_points.weight)
        nn.init.eye_(self.reference_points.weight[:, :3])


def _from_ray(heading: Tensor, center: Tensor) -> Tensor:
    """Turns headings relative to the ray from the origin into those of box codes.

    The published yaw is -yaw - pi/2, so the azimuth of the ray is subtracted from it.

    Args:
        heading: (..., 2) sin, cos, of any length.
        center: (..., 2) x, y in metres.

    Returns:
        (..., 2) sin, cos of the same length.
    """
    sin, cos = heading.unbind(-1)
    x, y = F.normalize(center, dim=-1).unbind(-1)
    return torch.stack([sin * x - cos * y, cos * x + sin * y], dim=-1)


def _class_branch(embed_dim: int, num_classes: int) -> nn.Sequential:
    branch = nn.Sequential(
        nn.Linear(embed_dim, embed_dim),
        nn.LayerNorm(embed_dim),
        nn.ReLU(),
        nn.Linear(embed_dim, embed_dim),
        nn.LayerNorm(embed_dim),
        nn.ReLU(),
        nn.Linear(embed_dim, num_classes),
    )
    last = branch[-1]
    assert isinstance(last, nn.Linear)
    nn.init.constant_(last.bias, -math.log((1 - 0.01) / 0.01))  # prior probability 0.01 (focal loss)
    return branch


def _box_branch(embed_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(embed_dim, embed_dim),
        nn.ReLU(),
        nn.Linear(embed_dim, embed_dim),
        nn.ReLU(),
        nn.Linear(embed_dim, CODE_SIZE),
    )
