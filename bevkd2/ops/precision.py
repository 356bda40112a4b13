"""What the distillation losses share in their arithmetic."""

import torch
import torch.nn.functional as F
from torch import Tensor

_ROW = 1024  # numbers that are summed one after the other


def widen(tensor: Tensor) -> Tensor:
    """Casts to float32, but leaves float64 alone: losses are computed so whatever autocast does."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def ordered_sum(weights: Tensor) -> Tensor:
    """The sum of all numbers, bitwise the same for every number of threads.

    torch's own sum of a large tensor gives each thread a share, and then adds up the shares: another order,
    and another last bit, for another number of threads. Sums of rows it does not divide.

    Args:
        weights: of any shape.

    Returns:
        A scalar.
    """
    flat = weights.flatten()
    return F.pad(flat, (0, -flat.numel() % _ROW)).view(-1, _ROW).sum(1).sum()
