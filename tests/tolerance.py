"""Bounds of rounding: how far two correct results may be apart on any CPU, BLAS and number of threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch


def ulps(scale: float, n: int, dtype: torch.dtype = torch.float32) -> float:
    """Returns the absolute error that a sum of ``n`` numbers may have by the order in which it is taken.

    Each of the ``n`` additions rounds by at most half a unit in the last place of the partial sum. Two orders
    of one sum are therefore at most ``n`` units apart. For a chain of layers, ``n`` is the longest sum:
    errors of different layers have different signs, so that the chain stays below the bound of its
    longest sum.

    Args:
        scale: The largest absolute value of the quantity, in its own unit (of its terms, where they cancel).
        n: The number of terms of the (longest) sum.
        dtype: In which the sum is taken.

    Returns:
        ``n`` times the distance of numbers at ``scale``, in the unit of ``scale``.
    """
    return n * torch.finfo(dtype).eps * scale


@contextmanager
def float64_twin() -> Iterator[None]:
    """Lets code that asks for float32 compute in float64 while the context is open.

    A model of float64 parameters run inside has no float32 anywhere: what differs by more than
    ``ulps(..., torch.float64)`` differs in meaning, not in rounding.
    """
    with (
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        mock.patch.object(torch, "float32", torch.float64),
    ):
        yield
