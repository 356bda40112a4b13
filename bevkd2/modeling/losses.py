"""Normalisers of losses in distributed training."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from bevkd2.d2 import comm


def average_over_ranks(count: float | Tensor, device: torch.device) -> Tensor:
    """Returns the mean of a count over all processes, at least 1: the same divisor on every rank."""
    total = torch.as_tensor(count, dtype=torch.float32, device=device).clone()
    if comm.get_world_size() > 1:
        dist.all_reduce(total)
        total /= comm.get_world_size()
    return total.clamp(min=1)
