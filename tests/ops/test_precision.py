"""The sum that normalises weighted losses."""

import pytest
import torch

from bevkd2.ops import masked_l2, pixel_wise_kl
from bevkd2.ops.precision import ordered_sum


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (1024,), (3, 1500)])
def test_it_is_the_sum(shape: tuple[int, ...]) -> None:
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
