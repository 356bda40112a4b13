"""Bounds of rounding: how far two correct results may be apart on any CPU, BLAS and number of threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from bevkd2.structures.box_tensor import BoxTensor

_FLOAT32 = torch.float32


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


def assert_same_sum(actual: torch.Tensor, expected: torch.Tensor, n: int) -> None:
    """Asserts that two tensors differ by no more than the order of sums of ``n`` numbers (see ``ulps``).

    The scale is the largest number of ``expected``, the dtype that of ``actual``; ``expected`` may be wider.
    """
    bound = ulps(expected.detach().abs().max().item(), n, actual.dtype)
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=0, atol=bound)


def as_float64(tree: Any) -> Any:
    """Returns samples whose floating-point tensors and boxes are float64."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, BoxTensor):
            return type(leaf)(leaf.tensor.double())
        return leaf.double() if torch.is_tensor(leaf) and leaf.is_floating_point() else leaf

    return tree_map(convert, tree)


def _as_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(_FLOAT32) if tensor.is_floating_point() else tensor


class _NoFloat32(TorchDispatchMode):
    """Raises where an operator returns float32, except the one that draws masks, whose result is widened."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.bevkd2.draw_weights.default:  # float32 by definition; it has no gradient
            rounded = tree_map_only(torch.Tensor, _as_float32, (args, kwargs or {}))
            return tree_map_only(torch.Tensor, torch.Tensor.double, func(*rounded[0], **rounded[1]))
        result = func(*args, **(kwargs or {}))
        if any(isinstance(part, torch.Tensor) and part.dtype == _FLOAT32 for part in tree_leaves(result)):
            raise AssertionError(f"{func} returned float32 inside float64_twin, expected float64")
        return result


@contextmanager
def float64_twin() -> Iterator[None]:
    """Lets code that asks for float32 compute in float64 while the context is open.

    Two results of a model of float64 parameters that differ by more than ``ulps(..., torch.float64)`` differ
    in meaning, not in rounding.

    Raises:
        AssertionError: an operator returned float32 nevertheless, in the forward or in the backward pass.
    """
    default = torch.get_default_dtype()
    with (
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        mock.patch.object(torch, "float32", torch.float64),
        _NoFloat32(),
    ):
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
