"""Normalisers of losses in distributed training."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from bevkd2.d2 import comm


def average_over_ranks(count: float | Tensor, device: torch.device) -> Tensor:
    """Returns the mean of a count over all processes, at least 1: the same divisor on every rank.

    Args:
        count: of this process; a tensor is a scalar ().
        device: of the result, on which the processes exchange it.

    Returns:
        A float32 scalar.
    """
    # non_blocking: a copy to the device would otherwise wait for what is queued there
    total = torch.as_tensor(count, dtype=torch.float32).to(device, non_blocking=True)
    return mean_over_ranks(total).clamp(min=1)


def mean_over_ranks(value: Tensor) -> Tensor:
    """Returns the mean of a value over all processes, without gradient; the same on every rank.

    Args:
        value: of this process, of any shape but the same in all; not changed.
    """
    total = value.detach().clone()
    if comm.get_world_size() > 1:
        dist.all_reduce(total)
        total /= comm.get_world_size()
    return total


def share_of_average(count: Tensor) -> Tensor | float:
    """Returns the count of this process over the mean of all, at least 1: 1 where there is one process.

    A mean over the ``count`` terms of a process, multiplied by it, averages over the processes to the mean
    over the terms of all.

    Args:
        count: scalar, how many terms this process has.
    """
    if comm.get_world_size() == 1:
        return 1.0
    return count / average_over_ranks(count, count.device)


def max_over_ranks(value: Tensor) -> Tensor:
    """Returns the largest value of all processes, element by element.

    Args:
        value: of this process, of any shape but the same in all; not changed. With one process it
            is returned itself.
    """
    if comm.get_world_size() == 1:
        return value
    largest = value.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest
