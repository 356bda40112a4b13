"""The one rule of precision that all distillation losses share."""

import torch
from torch import Tensor


def widen(tensor: Tensor) -> Tensor:
    """Casts to float32, but leaves float64 alone: losses are computed so whatever autocast does."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
