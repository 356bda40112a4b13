"""Detection losses over all decoder layers."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from bevkd2.d2 import comm


def average_over_ranks(count: float | Tensor, device: torch.device) -> Tensor:
    """Mean of a count over all processes, at least 1, so that every rank divides by the same number."""
    # non_blocking: a copy to the device would otherwise wait for what is queued there
    total = torch.as_tensor(count, dtype=torch.float32).to(device, non_blocking=True, copy=True)
    if comm.get_world_size() > 1:
        dist.all_reduce(total)
        total /= comm.get_world_size()
    return total.clamp(min=1)
