"""Arithmetic dtype of the ops, and a sum that does not depend on the number of threads."""

import torch
import torch.nn.functional as F
from torch import Tensor

_ROW = 1024  # numbers that are summed one after the other


def arithmetic_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Returns the dtype in which an op computes: float64 if any tensor is float64, otherwise float32.

    Autocast has no influence on it. Every op of the package and its fake kernel follow this rule.

    Args:
        tensors: inputs of any floating dtype; ``None`` entries are ignored.
    """
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def widen(tensor: Tensor) -> Tensor:
    """Returns a tensor in its arithmetic dtype: float64 stays, everything else becomes float32.

    Args:
        tensor: of any shape and floating dtype; returned as it is where nothing changes.
    """
    return tensor.to(arithmetic_dtype(tensor))


def ordered_sum(weights: Tensor) -> Tensor:
    """Returns the sum of all elements, bitwise the same for every number of threads.

    ``torch.sum`` of a large tensor gives each thread a share of the elements, so the order of the additions,
    and with it the last bit, depends on the number of threads. Sums of rows are not divided like that.

    Args:
        weights: a tensor of any shape.

    Returns:
        A scalar of the same dtype.
    """
    flat = weights.flatten()
    return F.pad(flat, (0, -flat.numel() % _ROW)).view(-1, _ROW).sum(1).sum()
