"""What every form of deformable attention must do. A test file of an op subclasses DeformAttnTester."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes of one call."""

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
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}

Inputs = dict[str, Any]


def double(inputs: Inputs) -> Inputs:
    """The same inputs with every float in float64."""
    return {
        k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()
    }


def run(op: Callable, inputs: Inputs) -> dict[str, Tensor]:
    """Outputs by number, and gradients by argument, for a fixed random gradient of each output."""
    leaves = {
        k: v.detach().clone().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }
    outputs = op(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
    torch.autograd.backward(outputs, grads)
    results = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    for name, leaf in leaves.items():
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            results[name] = leaf.grad
    return results


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Close relative to the largest number of each result, which is how errors of sums behave."""
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


def cuda_inputs(inputs: Inputs, dtype: torch.dtype | None = None) -> Inputs:
    """The same inputs on the GPU, value in `dtype`. Skips the test where there is no GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    moved = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    return {**moved, "value": moved["value"].to(dtype or moved["value"].dtype)}


class DeformAttnTester:
    """Subclasses give the op, its reference, the names of the raw ops, and how to make inputs."""

    op: ClassVar[Callable]
    reference: ClassVar[Callable]
    raw: ClassVar[str]
    locations: ClassVar[str]  # the argument that moves points: locations or offsets
    variants: ClassVar[tuple[str, ...]] = ("",)
    gradcheck_queries: ClassVar[int] = 1

    def make(self, case: Case, dtype: torch.dtype, seed: int = 0) -> Inputs:
        """Inputs; points lie inside the map and up to a pixel beyond, never at a knot."""
        raise NotImplementedError

    def place(self, case: Case, x: float, y: float) -> Inputs:
        """float64 inputs whose points all lie at pixel (x, y) of their level."""
        raise NotImplementedError

    def raw_arguments(self, inputs: Inputs) -> tuple:
        """Arguments of the raw op for these inputs."""
        raise NotImplementedError

    def raw_backward_arguments(self, inputs: Inputs) -> tuple:
        """Arguments of the raw backward op for these inputs."""
        raise NotImplementedError

    def cases(self, names: tuple[str, ...]) -> list[Case]:
        return [dataclasses.replace(SIZES[name], variant=v) for name in names for v in self.variants]

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    @pytest.mark.parametrize("size", SIZES)
    def test_matches_the_reference(self, size: str, dtype: torch.dtype) -> None:
        for case in self.cases((size,)):
            inputs = self.make(case, dtype)
            expected = run(type(self).reference, double(inputs))
            assert_close(run(type(self).op, inputs), expected, TOLERANCE[dtype])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("size", ["wide", "odd", "long"])
    def test_16_bit_value_is_accurate(self, size: str, dtype: torch.dtype) -> None:
        for case in self.cases((size,)):
            inputs = self.make(case, torch.float32)
            inputs["value"] = inputs["value"].to(dtype)
            actual = run(type(self).op, inputs)
            for name, tensor in inputs.items():
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    assert actual[name].dtype == tensor.dtype, name
            assert actual["output 0"].dtype == dtype
            assert_close(actual, run(type(self).reference, double(inputs)), TOLERANCE[dtype])

    def test_gradients_come_back_in_16_bits_where_inputs_are(self) -> None:
        inputs = self.make(SIZES["small"], torch.float32)
        inputs = {
            k: v.half() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()
        }
        results = run(type(self).op, inputs)
        assert all(results[k].dtype == torch.float16 for k in inputs if k in results)

    def test_gradcheck(self) -> None:
        for case in self.cases(("small", "odd")):
            case = dataclasses.replace(case, batch=1, queries=self.gradcheck_queries, width=3)
            inputs = self.make(case, torch.float64)
            floats = [k for k, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()]

            def function(*tensors: Tensor, inputs: Inputs = inputs, floats: list[str] = floats) -> Tensor:
                return type(self).op(**{**inputs, **dict(zip(floats, tensors, strict=True))})

            leaves = tuple(inputs[k].clone().requires_grad_() for k in floats)
            assert torch.autograd.gradcheck(function, leaves, atol=1e-6)

    def test_opcheck(self) -> None:
        for case in self.cases(("small",)):
            inputs = self.make(case, torch.float32)
            leaves = {
                k: v.clone().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v
                for k, v in inputs.items()
            }
            torch.library.opcheck(getattr(torch.ops.bevkd2, self.raw).default, self.raw_arguments(leaves))
            backward = getattr(torch.ops.bevkd2, f"{self.raw}_backward").default
            torch.library.opcheck(backward, self.raw_backward_arguments(inputs))

    def test_compiles_in_one_graph(self) -> None:
        inputs = self.make(SIZES["small"], torch.float32)
        compiled = torch.compile(type(self).op, fullgraph=True, backend="aot_eager", dynamic=True)
        actual = run(compiled, inputs)
        expected = run(type(self).op, inputs)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)

    @pytest.mark.parametrize("empty", ["batch", "queries", "points"])
    def test_empty(self, empty: str) -> None:
        for variant in self.variants:
            case = dataclasses.replace(SIZES["small"], variant=variant, **{empty: 0})
            inputs = self.make(case, torch.float32)
            actual = run(type(self).op, inputs)
            assert_close(actual, run(type(self).reference, inputs), 1e-6)

    @pytest.mark.parametrize("x", [-1.0, -0.75, -0.5, 0.0, 2.0, 5.5, 6.0, 6.75, 7.0, 100.0])
    @pytest.mark.parametrize("y", [-1.0, -0.25, 0.0, 4.0, 4.5, 5.0])
    def test_borders_and_knots(self, x: float, y: float) -> None:
        for case in self.cases(("small",)):
            inputs = self.place(dataclasses.replace(case, levels=((5, 7),)), x, y)
            actual, expected = run(type(self).op, inputs), run(type(self).reference, inputs)
            if x in (-1.0, 7.0, 100.0) or y in (-1.0, 5.0):
                assert not actual["output 0"].any()
            if x == int(x) or y == int(y):  # at a knot rounding decides which of two gradients it is
                actual = {k: v for k, v in actual.items() if k in ("output 0", "value")}
                expected = {k: expected[k] for k in actual}
            assert_close(actual, expected, 1e-9)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_points_nowhere_count_as_outside(self, bad: float, dtype: torch.dtype) -> None:
        inputs = self.make(SIZES["long"], dtype)
        inputs[self.locations][..., 1::2, 0] = bad
        far = {**inputs, self.locations: inputs[self.locations].clone()}
        far[self.locations][..., 1::2, 0] = -1e4
        actual, expected = run(type(self).op, inputs), run(type(self).op, far)
        assert not actual[self.locations][..., 1::2, :].any()
        for name in expected:
            if name != "reference_points":
                assert torch.equal(actual[name], expected[name]), name

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_points_outside_read_no_value(self, dtype: torch.dtype) -> None:
        inputs = self.make(SIZES["wide"], dtype)
        inputs[self.locations] = inputs[self.locations] + 1e4
        inputs["value"] = torch.full_like(inputs["value"], float("nan"))
        actual = run(type(self).op, inputs)
        assert not actual["output 0"].any()
        assert not actual["value"].any()

    def test_non_contiguous_inputs(self) -> None:
        inputs = self.make(SIZES["wide"], torch.float32)
        strided = {
            k: v.movedim(0, -1).contiguous().movedim(-1, 0) if isinstance(v, Tensor) and v.dim() > 1 else v
            for k, v in inputs.items()
        }
        assert not strided["value"].is_contiguous()
        actual, expected = run(type(self).op, strided), run(type(self).op, inputs)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)

    @pytest.mark.parametrize("size", ["wide", "long"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_bitwise_the_same_for_any_number_of_threads(self, size: str, dtype: torch.dtype) -> None:
        case = dataclasses.replace(SIZES[size], queries=300)
        inputs = self.make(case, torch.float32)
        inputs["value"] = inputs["value"].to(dtype)
        before = torch.get_num_threads()
        results = []
        try:
            for threads in (1, 2, 3, 8):
                torch.set_num_threads(threads)
                results.append(run(type(self).op, inputs))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(other[name], results[0][name]) for name in other)

    def test_only_wanted_gradients_are_made(self) -> None:
        inputs = self.make(SIZES["small"], torch.float32)
        everything = run(type(self).op, inputs)
        for wanted in (k for k, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()):
            leaf = inputs[wanted].clone().requires_grad_()
            outputs = type(self).op(**{**inputs, wanted: leaf})
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            generator = torch.Generator().manual_seed(1)
            grads = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
            used = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
            torch.autograd.backward([o for o, _ in used], [g for _, g in used])
            assert torch.equal(leaf.grad, everything[wanted]), wanted

    def test_second_derivatives_are_refused(self) -> None:
        inputs = self.make(SIZES["small"], torch.float64)
        inputs["value"].requires_grad_()
        out = type(self).op(**inputs)
        out = out[0] if isinstance(out, tuple) else out
        (grad,) = torch.autograd.grad(out.square().sum(), inputs["value"], create_graph=True)
        with pytest.raises(RuntimeError, match="has no second derivative"):
            grad.sum().backward()

    def test_autocast_leaves_value_in_16_bits_and_coordinates_in_32(self) -> None:
        inputs = self.make(SIZES["wide"], torch.float32)
        inputs["value"] = inputs["value"].bfloat16()
        expected = run(type(self).op, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            actual = run(type(self).op, inputs)
        assert actual["output 0"].dtype == torch.bfloat16
        assert all(torch.equal(actual[name], expected[name]) for name in expected)

    @pytest.mark.gpu
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
    def test_cuda_matches_the_reference(self, size: str, dtype: torch.dtype) -> None:
        for case in self.cases((size,)):
            inputs = self.make(case, torch.float64 if dtype == torch.float64 else torch.float32)
            inputs["value"] = inputs["value"].to(dtype)
            expected = run(type(self).reference, double(inputs))
            actual = {k: v.cpu() for k, v in run(type(self).op, cuda_inputs(inputs)).items()}
            assert_close(actual, expected, TOLERANCE[dtype])

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_cuda_is_reproducible_where_torch_is_asked_to_be(self, dtype: torch.dtype) -> None:
        case = dataclasses.replace(SIZES["wide"], queries=500, variant=self.variants[0])
        inputs = cuda_inputs(self.make(case, torch.float32), dtype)
        fast = run(type(self).op, inputs)
        torch.use_deterministic_algorithms(True)
        try:
            results = [run(type(self).op, inputs) for _ in range(5)]
        finally:
            torch.use_deterministic_algorithms(False)
        for other in results[1:]:
            assert all(torch.equal(other[name], results[0][name]) for name in other)
        assert_close(results[0], fast, TOLERANCE[dtype])

    @pytest.mark.gpu
    @pytest.mark.parametrize("deterministic", [False, True])
    def test_cuda_graph_captures_forward_and_backward(self, deterministic: bool) -> None:
        """A capture fails where an op waits for the device, and its replay has to see new inputs."""
        inputs = cuda_inputs(
            self.make(dataclasses.replace(SIZES["wide"], variant=self.variants[0]), torch.float32)
        )
        value = inputs["value"].requires_grad_()

        def step() -> tuple[Tensor, Tensor]:
            out = type(self).op(**inputs)
            out = out[0] if isinstance(out, tuple) else out
            return out, torch.autograd.grad(out.square().sum(), value)[0]

        torch.use_deterministic_algorithms(deterministic)
        try:
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = step()
            value.data.mul_(2)
            graph.replay()
            expected = step()
        finally:
            torch.use_deterministic_algorithms(False)
        for actual, wanted in zip(captured, expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)  # reductions in any order
