"""The layers of bench_layer.py compute the same with every op, and a difference is found."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks import bench_layer
from benchmarks.bench_layer import QUICK, Layer, Sizes
from benchmarks.bench_ms_deform_attn import grid_sample_form
from benchmarks.harness import Options
from bevkd2.modeling.bev import attention, decoder

Make = Callable[[Sizes, str], Layer]
LAYERS = (bench_layer.temporal, bench_layer.spatial, bench_layer.decoder_layer)


@pytest.mark.parametrize("make", LAYERS)
def test_a_layer_computes_the_same_with_grid_sample(make: Make) -> None:
    layer = make(QUICK, "cpu")
    expected = bench_layer.gradients(layer, layer.module)
    called = []

    def sample(*arguments: Tensor) -> Tensor:
        called.append(True)
        return grid_sample_form(*arguments)

    with bench_layer.swapped(sample, layer.lists):
        found = bench_layer.gradients(layer, layer.module)
    assert called and len(found) == 1 + len(layer.inputs) + 8  # four projections
    assert all(ours.any() for ours in expected.values())
    bench_layer.check_gradients("grid_sample", found, expected)
    torch.testing.assert_close(found["output"], expected["output"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", LAYERS)
def test_another_op_is_refused(make: Make) -> None:
    layer = make(QUICK, "cpu")
    expected = bench_layer.gradients(layer, layer.module)
    with bench_layer.swapped(lambda v, s, p, w: grid_sample_form(v, s, p + 0.01, w), layer.lists):
        found = bench_layer.gradients(layer, layer.module)
    with pytest.raises(RuntimeError, match=r"output differs from ours by .* of its norm"):
        bench_layer.check_gradients("moved", found, expected)


def test_ours_is_back_afterwards() -> None:
    before = attention.ms_deform_attn_ragged, attention.ms_deform_attn_fused, decoder.ms_deform_attn_fused
    with bench_layer.swapped(grid_sample_form, None):
        assert attention.ms_deform_attn_ragged is not before[0]
    assert before == (
        attention.ms_deform_attn_ragged,
        attention.ms_deform_attn_fused,
        decoder.ms_deform_attn_fused,
    )


def test_mmcv_on_the_cpu_is_its_form_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    mmcv = types.ModuleType("mmcv")
    mmcv.ops = types.ModuleType("mmcv.ops")
    mmcv.ops.multi_scale_deform_attn = types.ModuleType("mmcv.ops.multi_scale_deform_attn")

    def in_torch(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return grid_sample_form(value, tuple(map(tuple, shapes.tolist())), locations, weights)

    mmcv.ops.multi_scale_deform_attn.multi_scale_deformable_attn_pytorch = in_torch
    monkeypatch.setitem(sys.modules, "mmcv", mmcv)
    monkeypatch.setitem(sys.modules, "mmcv.ops", mmcv.ops)
    layer = bench_layer.spatial(QUICK, "cpu")
    expected = bench_layer.gradients(layer, layer.module)
    with bench_layer.swapped(bench_layer.mmcv_form("cpu"), layer.lists):
        found = bench_layer.gradients(layer, layer.module)
    bench_layer.check_gradients("mmcv", found, expected)


def test_ops_that_are_not_installed_have_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_layer.importlib.util, "find_spec", lambda name: None)
    samples, missing = bench_layer.available("cpu")
    assert set(samples) == {"grid_sample"} and set(missing) == {"torch-ms-deform-attn", "mmcv"}
    assert all("pip install" in reason for reason in missing.values())
    contests = bench_layer.contests(Options(quick=True))
    assert len(contests) == len(LAYERS) + 1 and all(contest.missing == missing for contest in contests)
    monkeypatch.setattr(
        bench_layer.importlib.util, "find_spec", lambda name: None if name == "mmcv._ext" else object()
    )
    monkeypatch.setattr(bench_layer, "aiueo_form", lambda device: None)
    assert bench_layer.available("cpu")[1]["mmcv"].startswith("installed without ops: ")


def test_baselines_that_need_more_memory_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench_layer.available_memory() > 2**20
    monkeypatch.setattr(bench_layer, "available_memory", lambda: 4 * 10**9)
    contests = {contest.case: contest.missing for contest in bench_layer.contests(Options())}
    left_out = {"grid_sample", "grid_sample, torch.compile"}
    assert left_out <= set(contests["spatial cross-attention, base"])
    assert not left_out & set(contests["spatial cross-attention, small"])
    reason = contests["spatial cross-attention, base"]["grid_sample"]
    assert reason == "not enough memory: about 16 GB are needed, 4 GB are free"
