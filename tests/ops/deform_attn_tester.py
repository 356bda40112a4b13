"""Tests of every form of deformable attention; the test file of a form subclasses DeformAttnTester."""

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.deform_attn_cuda import Cuda
from tests.ops.deform_attn_form import (
    GATE,
    LARGE,
    SIZES,
    TOLERANCE,
    Case,
    Inputs,
    assert_close,
    double,
    run,
)
from tests.ops.deform_attn_framework import Framework

__all__ = ["SIZES", "Case", "DeformAttnTester", "Inputs", "assert_close", "run"]

SMALL = st.integers(1, 6)


class DeformAttnTester(Framework, Cuda):
    """Compares the results of a form with its reference."""

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

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(data=st.data())
    def test_any_sizes_match_the_reference(self, data: st.DataObject) -> None:
        case = Case(
            levels=tuple(data.draw(st.lists(st.tuples(SMALL, SMALL), min_size=1, max_size=4))),
            batch=data.draw(st.integers(1, 3)),
            queries=3,
            heads=data.draw(st.integers(1, 4)),
            width=data.draw(st.integers(1, 40)),
            points=data.draw(st.integers(1, 9)),
            variant=data.draw(st.sampled_from(self.variants)),
        )
        inputs = self.make(case, torch.float32, data.draw(st.integers(0, 1000)))
        assert_close(run(type(self).op, inputs), run(type(self).reference, double(inputs)), 3e-5)

    @pytest.mark.parametrize("dtype", GATE, ids=str)
    def test_relative_error_against_a_float64_oracle(self, dtype: torch.dtype) -> None:
        """Checks outputs and gradients (of locations in pixels) on maps as large as models use."""
        for variant in self.variants:
            inputs = self.make(dataclasses.replace(LARGE, variant=variant), torch.float32)
            inputs["value"] = inputs["value"].to(dtype)
            actual, expected = run(type(self).op, inputs), run(type(self).reference, double(inputs))
            for name, oracle in expected.items():
                result = actual[name].double()
                if name == "sampling_locations":
                    sizes = torch.tensor([[w, h] for h, w in LARGE.levels])[:, None]
                    result, oracle = result / sizes, oracle / sizes
                error = (result - oracle).abs().max() / oracle.abs().max()
                assert error < GATE[dtype], (variant, name, error)

    @pytest.mark.parametrize("empty", ["batch", "queries", "heads", "width", "points"])
    def test_empty_inputs_match_the_reference(self, empty: str) -> None:
        for variant in self.variants:
            case = dataclasses.replace(SIZES["small"], variant=variant, **{empty: 0})
            inputs = self.make(case, torch.float32)
            actual = run(type(self).op, inputs)
            assert_close(actual, run(type(self).reference, inputs), 1e-6)

    def test_results_without_levels_are_zero(self) -> None:
        for variant in self.variants_without_levels:
            inputs = self.make(dataclasses.replace(SIZES["small"], variant=variant, levels=()), torch.float32)
            results = run(type(self).op, inputs)
            assert results["output 0"].shape[-1] == 16
            assert not any(result.any() for result in results.values())

    @pytest.mark.parametrize("x", [-1.0, -0.75, -0.5, 0.0, 2.0, 5.5, 6.0, 6.5, 6.75, 7.0, 100.0])
    @pytest.mark.parametrize("y", [-1.0, -0.5, -0.25, 0.0, 4.0, 4.5, 4.75, 5.0])
    def test_points_at_borders_and_on_grid_lines_match_the_reference(self, x: float, y: float) -> None:
        for case in self.cases(("small",)):
            inputs = self.place(dataclasses.replace(case, levels=((5, 7),)), x, y)
            actual, expected = run(type(self).op, inputs), run(type(self).reference, inputs)
            if x in (-1.0, 7.0, 100.0) or y in (-1.0, 5.0):
                assert not actual["output 0"].any()
            if x == int(x) or y == int(y):  # on a grid line rounding decides which of two gradients it is
                actual = {k: v for k, v in actual.items() if k in ("output 0", "value")}
                expected = {k: expected[k] for k in actual}
            assert_close(actual, expected, 1e-9)

    @pytest.mark.parametrize("x", [-1.0, -0.75, -0.5, 0.25, 0.5, 0.75, 1.0])
    def test_borders_of_a_one_pixel_map_match_the_reference(self, x: float) -> None:
        for case in self.cases(("small",)):
            inputs = self.place(dataclasses.replace(case, levels=((1, 1),)), x, 0.25)
            assert_close(run(type(self).op, inputs), run(type(self).reference, inputs), 1e-9)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_non_finite_points_count_as_outside(self, bad: float, dtype: torch.dtype) -> None:
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

    def test_non_contiguous_inputs_give_the_same_results(self) -> None:
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
