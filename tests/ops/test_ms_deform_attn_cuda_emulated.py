"""The CUDA kernels of deformable attention, run by the emulation, against the CPU ops."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.deform_attn_tester import SIZES, DeformAttnTester
from tests.ops.test_ms_deform_attn import TestMSDeformAttn as Plain
from tests.ops.test_ms_deform_attn_fused import TestMSDeformAttnFused as Fused
from tests.ops.test_ms_deform_attn_ragged import TestMSDeformAttnRagged as Ragged

FORMS = {"plain": Plain, "fused": Fused, "ragged": Ragged}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def assert_same(actual: Any, expected: Any, tolerance: float) -> None:
    """Tensors, alone or in tuples, relative to the largest number of each."""
    actual = actual if isinstance(actual, tuple) else (actual,)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, i
        assert a.dtype == e.dtype, i
        scale = max(1.0, e.abs().max().item()) if e.numel() else 1.0
        torch.testing.assert_close(a.double(), e.double(), rtol=0, atol=tolerance * scale)


def both(emulated: Any, name: str, arguments: tuple, tolerance: float) -> None:
    """Runs one raw op on the emulated device and on the CPU; uninitialised outputs are NaN."""
    expected = getattr(torch.ops.bevkd2, name)(*arguments)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives with NaN
    try:
        actual = getattr(emulated, name)(*arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(actual, expected, tolerance)


def check(emulated: Any, tester: DeformAttnTester, inputs: dict[str, Any], dtype: torch.dtype) -> None:
    """Forward and backward of one call."""
    inputs = {**inputs, "value": inputs["value"].to(dtype)}
    both(emulated, tester.raw, tester.raw_arguments(inputs), TOLERANCE[dtype])
    arguments = [
        a if not isinstance(a, Tensor) or i else torch.randn(a.shape).to(a)
        for i, a in enumerate(tester.raw_backward_arguments(inputs))
    ]
    both(emulated, f"{tester.raw}_backward", tuple(arguments), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_matches_the_cpu(emulated: Any, form: str, size: str, dtype: torch.dtype) -> None:
    tester = FORMS[form]()
    for variant in tester.variants:
        case = dataclasses.replace(SIZES[size], variant=variant)
        precise = torch.float64 if dtype == torch.float64 else torch.float32
        check(emulated, tester, tester.make(case, precise), dtype)
