"""Arithmetic dtype of the ops, and the sum that normalises weighted losses."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bevkd2.ops import attention_l2, bev_response_l2, channel_wise_kl, feature_l2, masked_l2, pixel_wise_kl
from bevkd2.ops.precision import arithmetic_dtype, ordered_sum, widen


def test_arithmetic_is_float64_only_if_a_tensor_is() -> None:
    half, single, double = (torch.zeros(1, dtype=d) for d in (torch.float16, torch.float32, torch.float64))
    assert arithmetic_dtype(half, None, half.bfloat16()) == torch.float32
    assert arithmetic_dtype(single, None) == torch.float32
    assert arithmetic_dtype(half, None, double) == torch.float64
    assert (widen(half).dtype, widen(double).dtype) == (torch.float32, torch.float64)


@pytest.mark.parametrize(
    "loss",
    [
        channel_wise_kl,
        pixel_wise_kl,
        feature_l2,
        lambda s, t: masked_l2(s, t, reduction="mean"),
        lambda s, t: attention_l2(s, t, reduction="mean"),
        lambda s, t: bev_response_l2(s, t, reduction="mean"),
    ],
)
@pytest.mark.parametrize("student", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("teacher", [torch.float64, torch.bfloat16], ids=str)
def test_losses_are_returned_in_the_arithmetic_dtype(
    loss: Callable[[Tensor, Tensor], Tensor], student: torch.dtype, teacher: torch.dtype
) -> None:
    pair = torch.ones(1, 2, 3, 4, dtype=student), torch.zeros(1, 2, 3, 4, dtype=teacher)
    assert loss(*pair).dtype == arithmetic_dtype(*pair)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (1024,), (3, 1500)])
def test_ordered_sum_equals_the_sum(shape: tuple[int, ...]) -> None:
    weights = torch.rand(shape, dtype=torch.float64)
    torch.testing.assert_close(ordered_sum(weights), weights.sum())


def test_normalisers_are_bitwise_the_same_for_any_number_of_threads() -> None:
    weights = torch.rand(1, 400, 500).exp()
    student, teacher = torch.randn(1, 2, 400, 500), torch.randn(1, 2, 400, 500)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            rows = (student.permute(0, 2, 3, 1), teacher.permute(0, 2, 3, 1))
            results.append(
                torch.stack(
                    [
                        ordered_sum(weights),
                        pixel_wise_kl(student, teacher, weights),
                        masked_l2(*rows, weights, reduction="mean"),
                    ]
                )
            )
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result, results[0])
