"""Temporal self-attention: every cell looks at the previous bird's-eye view and at the present one."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from bevkd2.modeling.bev.deformable_attention import DeformableAttention
from bevkd2.ops import ms_deform_attn_fused

NUM_QUEUES = 2  # previous, current


@dataclasses.dataclass
class History:
    """What the layers of one forward pass share about the past. B samples, Q = H*W cells."""

    queue: Tensor | None
    """(B, 2, Q, C): the previous BEV, turned into the present's frame, and the encoder's initial queries;
    rows without history are never read. None where no sample has any."""
    exists: list[bool]
    """Which samples have one."""
    reference_points: Tensor
    """(B, 2, Q, 2) float32: x, y as fractions of the grid; the previous frame's are shifted by the ego
    motion."""
    mask: Tensor = dataclasses.field(init=False)
    """(B, 1, 1, 1) bool: ``exists`` on the device, made once, so that no layer waits for its copy."""

    def __post_init__(self) -> None:
        device = self.reference_points.device
        self.mask = torch.tensor(self.exists, device=device)[:, None, None, None]

    def queue_for(self, query: Tensor) -> Tensor:
        """Returns (B, 2, Q, C) to attend to: without history, twice the running ``query`` (B, Q, C)."""
        running = query.unsqueeze(1).expand(-1, NUM_QUEUES, -1, -1)
        if self.queue is None:
            return running
        if all(self.exists):
            return self.queue
        return torch.where(self.mask, self.queue.to(query.dtype), running)


class TemporalSelfAttention(DeformableAttention):
    """Deformable attention over a queue of two grids (BEVFormer, section 3.4, Eq. 5).

    A sample without history attends twice to its own running queries. Each sample of a batch is treated by
    itself, whatever the others have.
    """

    def __init__(
        self, *, embed_dim: int, num_heads: int, num_points: int, bev_shape: tuple[int, int], dropout: float
    ) -> None:
        """Makes the projections.

        Args:
            embed_dim: C.
            num_heads: M.
            num_points: P, sampling points of each queue.
            bev_shape: rows (y) and columns (x) of the grid.
            dropout: probability, of the output.
        """
        super().__init__(
            query_dim=NUM_QUEUES * embed_dim,
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_sets=NUM_QUEUES,
            num_points=num_points,
            dropout=dropout,
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
