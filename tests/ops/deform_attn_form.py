"""Sizes, inputs and results of one form of deformable attention under test."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes of one call of a form."""

    levels: tuple[tuple[int, int], ...] = ((5, 7), (3, 2))
    batch: int = 2
    queries: int = 6
    heads: int = 2
    width: int = 8
    points: int = 2
    variant: str = ""


SIZES = {
    "small": Case(),
    "wide": Case(width=32, heads=4, points=4, levels=((6, 9),)),
    "long": Case(width=40, heads=3, points=8, levels=((6, 9), (4, 5), (2, 3), (1, 2))),
    "odd": Case(width=5, heads=3, points=3),
    "one channel": Case(width=1, heads=1, points=1, levels=((4, 4),)),
    "one pixel": Case(levels=((1, 1), (1, 1)), points=4),
    "one row": Case(levels=((1, 6), (5, 1)), width=16),
}
LARGE = Case(levels=((20, 200), (10, 100)), queries=12, heads=2, width=16, points=4)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
GATE = {torch.float32: 2e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}

Inputs = dict[str, Any]


def double(inputs: Inputs) -> Inputs:
    """Returns the inputs with every floating tensor in float64."""
    return {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()
    }


def outputs_of(op: Callable, inputs: Inputs) -> tuple[Tensor, ...]:
    """Calls a form and returns its output, and its weights if it returns any."""
    result = op(**inputs)
    if isinstance(result, Tensor):
        return (result,)
    output, weights = result
    return (output,) if weights is None else (output, weights)


def run(op: Callable, inputs: Inputs) -> dict[str, Tensor]:
    """Returns outputs by number and gradients by argument, for a fixed random gradient of each output."""
    leaves = {
        k: v.detach().clone().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }
    outputs = outputs_of(op, leaves)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
    torch.autograd.backward(outputs, grads)
    results = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    for name, leaf in leaves.items():
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            results[name] = leaf.grad
    return results


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Asserts that errors are small relative to the largest number of each result, as errors of sums are."""
    assert actual.keys() == expected.keys()
    for name, result in actual.items():
        assert result.shape == expected[name].shape, name
        scale = max(1.0, expected[name].abs().max().item()) if result.numel() else 1.0
        error = (result.double() - expected[name].double()).abs()
        assert error.isfinite().all(), name
        assert not result.numel() or error.max().item() <= tolerance * scale, (
            name,
            error.max().item(),
            scale,
        )


@contextlib.contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Sets ``torch.use_deterministic_algorithms`` inside the context."""
    torch.use_deterministic_algorithms(enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class DeformAttnForm:
    """Base class of a form's tests; subclasses give the op, its reference, its raw name and its inputs."""

    op: ClassVar[Callable]
    reference: ClassVar[Callable]
    raw: ClassVar[str]
    locations: ClassVar[str]  # the argument that moves points: locations or offsets
    variants: ClassVar[tuple[str, ...]] = ("",)
    variants_without_levels: ClassVar[tuple[str, ...]] = ("",)  # variants that work with no level
    gradcheck_queries: ClassVar[int] = 1

    def make(self, case: Case, dtype: torch.dtype, seed: int = 0) -> Inputs:
        """Returns inputs whose points lie inside the map and up to a pixel outside, never on a grid line."""
        raise NotImplementedError

    def place(self, case: Case, x: float, y: float) -> Inputs:
        """Returns float64 inputs whose points all lie at pixel (x, y) of their level."""
        raise NotImplementedError

    def raw_arguments(self, inputs: Inputs) -> tuple:
        """Returns the raw op's arguments for these inputs."""
        raise NotImplementedError

    def raw_backward_arguments(self, inputs: Inputs) -> tuple:
        """Returns the raw backward op's arguments for these inputs."""
        raise NotImplementedError

    def cases(self, names: tuple[str, ...]) -> list[Case]:
        """Returns the named sizes in every variant of the form."""
        return [dataclasses.replace(SIZES[name], variant=v) for name in names for v in self.variants]
