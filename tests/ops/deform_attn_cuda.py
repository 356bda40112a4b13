"""Tests of every form of deformable attention on a GPU."""

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.ops.deform_attn_form import (
    SIZES,
    TOLERANCE,
    DeformAttnForm,
    Inputs,
    assert_close,
    deterministic_algorithms,
    double,
    outputs_of,
    run,
)


def cuda_inputs(inputs: Inputs, dtype: torch.dtype | None = None) -> Inputs:
    """Returns the inputs on the GPU, with value in ``dtype``. Skips the test if there is no GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    moved = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    return {**moved, "value": moved["value"].to(dtype or moved["value"].dtype)}


class Cuda(DeformAttnForm):
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
    def test_cuda_is_reproducible_with_deterministic_algorithms(self, dtype: torch.dtype) -> None:
        case = dataclasses.replace(SIZES["wide"], queries=500, variant=self.variants[0])
        inputs = cuda_inputs(self.make(case, torch.float32), dtype)
        fast = run(type(self).op, inputs)
        with deterministic_algorithms(True):
            results = [run(type(self).op, inputs) for _ in range(5)]
        for other in results[1:]:
            assert all(torch.equal(other[name], results[0][name]) for name in other)
        assert_close(results[0], fast, TOLERANCE[dtype])

    @pytest.mark.gpu
    @pytest.mark.parametrize("deterministic", [False, True])
    def test_cuda_graph_captures_forward_and_backward(self, deterministic: bool) -> None:
        """A capture fails if an op waits for the device, and its replay must read the new inputs."""
        inputs = cuda_inputs(
            self.make(dataclasses.replace(SIZES["wide"], variant=self.variants[0]), torch.float32)
        )
        value = inputs["value"].requires_grad_()

        def step() -> tuple[Tensor, Tensor]:
            out = outputs_of(type(self).op, inputs)[0]
            return out, torch.autograd.grad(out.square().sum(), value)[0]

        with deterministic_algorithms(deterministic):
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
        for actual, wanted in zip(captured, expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)  # reductions in any order
