"""Tests of every form of deformable attention with autograd, compilation, autocast and vmap."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch.aot_autograd import make_boxed_func
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.deform_attn_form import (
    SIZES,
    Case,
    DeformAttnForm,
    Inputs,
    deterministic_algorithms,
    outputs_of,
    run,
)


class Recorder(TorchDispatchMode):
    """Records the names and arguments of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        self.calls.append((func._opname, args))
        return func(*args, **(kwargs or {}))


class Framework(DeformAttnForm):
    @pytest.mark.filterwarnings("ignore:.*normalised coordinate")
    def test_gradients_of_16_bit_inputs_have_16_bits(self) -> None:
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

            def function(
                *tensors: Tensor, inputs: Inputs = inputs, floats: list[str] = floats
            ) -> tuple[Tensor, ...]:
                return outputs_of(type(self).op, {**inputs, **dict(zip(floats, tensors, strict=True))})

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

    def test_compiles_in_one_graph_for_all_sizes(self) -> None:
        torch.compiler.reset()
        backend = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(type(self).op, fullgraph=True, backend=backend, dynamic=True)
        for batch, queries in ((4, 12), (6, 17)):  # no two sizes alike: torch guards on such
            inputs = self.make(Case(batch=batch, queries=queries, heads=3, points=5), torch.float32)
            actual, expected = run(compiled, inputs), run(type(self).op, inputs)
            assert all(torch.equal(actual[name], expected[name]) for name in expected)
        assert backend.frame_count == 1

    def test_compiled_backward_follows_deterministic_algorithms(self) -> None:
        asked = []

        def record(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
            nodes = graph.graph.nodes
            asked.extend(node.args[-1] for node in nodes if f"{self.raw}_backward" in str(node.target))
            return make_boxed_func(graph.forward)

        torch.compiler.reset()
        backend = aot_autograd(fw_compiler=record)  # the backward graph's too
        compiled = torch.compile(type(self).op, fullgraph=True, backend=backend)
        inputs = self.make(SIZES["small"], torch.float32)
        for enabled in (False, True):
            with deterministic_algorithms(enabled):
                run(compiled, inputs)
        assert asked == [False, True]

    def test_only_requested_gradients_are_computed(self) -> None:
        inputs = self.make(SIZES["small"], torch.float32)
        everything = run(type(self).op, inputs)
        for name in (k for k, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()):
            leaf = inputs[name].clone().requires_grad_()
            outputs = outputs_of(type(self).op, {**inputs, name: leaf})
            generator = torch.Generator().manual_seed(1)
            grads = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
            used = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
            torch.autograd.backward([o for o, _ in used], [g for _, g in used])
            assert torch.equal(leaf.grad, everything[name]), name

    def test_an_expanded_upstream_gradient_equals_a_contiguous_one(self) -> None:
        """The gradient of ``sum`` is one number, expanded."""
        inputs = self.make(SIZES["wide"], torch.float32)
        inputs["value"].requires_grad_()
        out = outputs_of(type(self).op, inputs)[0]
        (actual,) = torch.autograd.grad(out.sum(), inputs["value"], retain_graph=True)
        (expected,) = torch.autograd.grad(out, inputs["value"], torch.ones_like(out))
        assert torch.equal(actual, expected)

    def test_second_derivatives_are_refused(self) -> None:
        inputs = self.make(SIZES["small"], torch.float64)
        floats = [k for k, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()]
        leaves = {k: inputs[k].clone().requires_grad_() for k in floats}
        outputs = outputs_of(type(self).op, {**inputs, **leaves})
        for output in outputs:
            used = ["attention_logits"] if output is not outputs[0] else floats
            for name in used:
                (grad,) = torch.autograd.grad(output.square().sum(), leaves[name], create_graph=True)
                with pytest.raises(RuntimeError, match=f"bevkd2::{self.raw}_backward has no second derivat"):
                    torch.autograd.grad(grad.sum(), leaves[name])

    def test_forward_mode_is_refused(self) -> None:
        inputs = self.make(SIZES["small"], torch.float64)

        def out(value: Tensor) -> Tensor:
            return outputs_of(type(self).op, {**inputs, "value": value})[0]

        with pytest.raises(RuntimeError, match=f"bevkd2::{self.raw} has no forward-mode derivative"):
            torch.func.jvp(out, (inputs["value"],), (inputs["value"],))
        with pytest.raises(RuntimeError, match=r"autograd\.Function"):  # torch's own words
            torch.func.hessian(lambda value: out(value).sum())(inputs["value"])

    @pytest.mark.filterwarnings("ignore:.*batching rule")  # torch 2.14 writes it to stderr instead
    def test_vmap_is_a_loop(self) -> None:
        inputs = self.make(SIZES["small"], torch.float64)

        def out(value: Tensor) -> Tensor:
            result = type(self).op(**{**inputs, "value": value})
            return result[0] if isinstance(result, tuple) else result

        values = torch.stack([inputs["value"], 2 * inputs["value"]])
        with Recorder() as recorder:
            actual = torch.func.vmap(out)(values)
        assert [name for name, _ in recorder.calls].count(self.raw) == 2
        assert torch.equal(actual, torch.stack([out(value) for value in values]))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_autocast_leaves_value_in_16_bits_and_coordinates_in_32(self, dtype: torch.dtype) -> None:
        inputs = self.make(SIZES["wide"], torch.float32)
        inputs["value"] = inputs["value"].to(dtype)
        expected = run(type(self).op, inputs)
        with torch.autocast("cpu", dtype):
            actual = run(type(self).op, inputs)
        assert actual["output 0"].dtype == dtype
        assert all(torch.equal(actual[name], expected[name]) for name in expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_only_16_bit_normalised_coordinates_are_warned_of(self, dtype: torch.dtype) -> None:
        """Offsets in pixels, weights and logits may have 16 bits, as autocast computes them."""
        inputs = self.make(SIZES["wide"], torch.float32)
        normalised = "reference_points" if "reference_points" in inputs else "sampling_locations"
        for name, tensor in inputs.items():
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and name != normalised:
                inputs[name] = tensor.to(dtype)
        widened = {
            k: v.float() if k not in ("value",) and v.is_floating_point() else v
            for k, v in inputs.items()
            if isinstance(v, Tensor)
        }
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            actual = run(type(self).op, inputs)
        expected = run(type(self).op, {**inputs, **widened})
        assert torch.equal(actual["output 0"], expected["output 0"])
        inputs[normalised] = inputs[normalised].to(dtype)
        torch.compile(type(self).op, fullgraph=True, backend="eager")(**inputs)  # cannot warn, so must not
        with pytest.warns(UserWarning, match=f"{self.raw}: {normalised} is {dtype}"):
            type(self).op(**inputs)

    def test_backward_passes_on_deterministic_algorithms(self) -> None:
        inputs = self.make(SIZES["small"], torch.float32)
        asked = []
        for enabled in (False, True):
            with deterministic_algorithms(enabled), Recorder() as recorder:
                run(type(self).op, inputs)
            asked += [args[-1] for name, args in recorder.calls if name == f"{self.raw}_backward"]
        assert asked == [False, True]

    def test_lists_of_shapes_are_not_read_from_the_device(self) -> None:
        inputs = self.make(SIZES["small"], torch.float32)
        with Recorder() as recorder:
            run(type(self).op, inputs)
        names = {name for name, _ in recorder.calls}
        assert {self.raw, f"{self.raw}_backward"} <= names
        assert not names & {"_local_scalar_dense", "item", "nonzero", "masked_select", "equal"}
