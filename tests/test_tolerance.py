"""The bounds of rounding that tests of numbers share."""

import pytest
import torch

from tests.tolerance import assert_same_sum, float64_twin, ulps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_orders_of_a_sum_are_within_the_bound(dtype: torch.dtype):
    terms = torch.rand(1000, dtype=dtype, generator=torch.Generator().manual_seed(0))
    forward, backward = terms.cumsum(0)[-1].item(), terms.flip(0).cumsum(0)[-1].item()
    assert abs(forward - backward) <= ulps(forward, len(terms), dtype)
    assert abs(forward * (1 + 2 * 1000 * torch.finfo(dtype).eps) - backward) > ulps(forward, 1000, dtype)


def test_the_same_sum_is_told_from_another():
    expected = torch.tensor([100.0, 1e-3])
    assert_same_sum(expected + torch.tensor([0.0, 5e-5]), expected, 5)  # 6e-5 at 100
    assert_same_sum(expected, expected.double(), 1)
    with pytest.raises(AssertionError, match="not close"):
        assert_same_sum(expected + torch.tensor([0.0, 7e-5]), expected, 5)


def test_the_twin_has_no_float32():
    captured = torch.float32
    with float64_twin():
        assert torch.ones(1, dtype=torch.float32).dtype == torch.float64
        assert torch.ones(1, dtype=torch.float16).float().dtype == torch.float64
        assert torch.tensor([1.0]).dtype == torch.float64
        with pytest.raises(AssertionError, match=r"aten\.ones.* returned float32"):
            torch.ones(1, dtype=captured)
    assert torch.tensor([1.0]).dtype == captured == torch.float32
    assert torch.ones(1, dtype=torch.float64).float().dtype == torch.float32
