"""Reductions of the masked L2 losses against their definitions."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bevkd2.ops import attention_l2, bev_response_l2, masked_l2

REDUCTIONS = ("sum", "cell", "mean", "norm")


def by_hand(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, reduction: str) -> float:
    """Computes the reductions as they are defined, cell by cell."""
    cells, samples = [], [0.0] * student.shape[0]
    for index in mask.nonzero().tolist():
        difference = (student[tuple(index)] - teacher[tuple(index)]).double()
        cells.append(difference.square().sum().item())
        samples[index[0]] += cells[-1]
    entries = student[(0,) * mask.dim()].numel()
    if reduction == "norm":
        return sum(s**0.5 for s in samples) / len(samples)
    if reduction == "sum":
        return sum(cells) / student.shape[0]
    return sum(cells) / max(1, len(cells)) / (entries if reduction == "mean" else 1)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), batch=st.integers(1, 3), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_masked_and_attention_l2_equal_the_definitions(
    reduction: str, seed: int, batch: int, share: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, batch, 5, 2, 3, 4, generator=generator)
    mask = torch.rand(batch, 5, generator=generator) < share
    expected = by_hand(student, teacher, mask, reduction)
    assert attention_l2(student, teacher, mask, reduction=reduction).item() == pytest.approx(
        expected, rel=1e-5
    )
    everything = torch.ones_like(mask)
    expected = by_hand(student, teacher, everything, reduction)
    assert masked_l2(student, teacher, reduction=reduction).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_bev_response_equals_the_definitions(reduction: str) -> None:
    student, teacher = torch.randn(2, 7, 6), torch.randn(2, 7, 10)
    mask = torch.rand(2, 7) < 0.5
    expected = by_hand(student.abs().mean(-1), teacher.abs().mean(-1), mask, reduction)
    assert bev_response_l2(student, teacher, mask, reduction=reduction).item() == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", [masked_l2, attention_l2])
def test_gradcheck(loss: Callable, reduction: str) -> None:
    student, teacher = torch.randn(2, 2, 3, 2, 2, 2, dtype=torch.float64)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, mask, reduction=reduction), (student,))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_counted_cell_gives_zero_with_a_graph(reduction: str) -> None:
    student = torch.randn(2, 3, 2, 2, 2, requires_grad=True)
    loss = attention_l2(
        student, torch.randn(2, 3, 2, 2, 2), torch.zeros(2, 3, dtype=torch.bool), reduction=reduction
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_of_equal_inputs_is_zero(reduction: str) -> None:
    student = torch.randn(2, 3, 4, requires_grad=True)
    loss = bev_response_l2(student, student.detach().clone(), reduction=reduction)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cells_of_weight_zero_are_ignored_even_if_nan(reduction: str) -> None:
    student, teacher = torch.randn(2, 2, 3, 4)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    expected = masked_l2(student, teacher, mask, reduction=reduction)
    student[~mask] = float("nan")
    student.requires_grad_()
    loss = masked_l2(student, teacher, mask, reduction=reduction)
    loss.backward()
    assert torch.equal(loss, expected)
    assert not student.grad[~mask].any()


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = torch.randn(2, 1, 3, 4).requires_grad_().unbind(0)
    teacher = teacher.detach().requires_grad_()
    masked_l2(student, teacher, reduction="mean").backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_arithmetic_of_16_bit_inputs_is_float32(dtype: torch.dtype) -> None:
    student = torch.full((1, 10, 400), 10.0, dtype=dtype, requires_grad=True)  # the sum overflows float16
    with torch.autocast("cpu", torch.bfloat16):
        loss = masked_l2(student, torch.zeros_like(student), reduction="sum")
    assert loss.dtype == torch.float32
    assert loss.item() == 10 * 400 * 100
    loss.backward()
    assert student.grad.dtype == dtype


def test_a_mask_of_weights_counts_cells_by_their_weight() -> None:
    student, teacher = torch.zeros(1, 3, 2), torch.ones(1, 3, 2)
    student[0, 1] = 3.0
    mask = torch.tensor([[0.5, 0.25, 0.0]])
    squares = 0.5 * 2 + 0.25 * 8
    assert masked_l2(student, teacher, mask, reduction="sum").item() == pytest.approx(squares)
    assert masked_l2(student, teacher, mask, reduction="cell").item() == pytest.approx(squares / 0.75)
    assert masked_l2(student, teacher, mask, reduction="mean").item() == pytest.approx(squares / 1.5)
    assert masked_l2(student, teacher, mask, reduction="norm").item() == pytest.approx(squares**0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: masked_l2(torch.zeros(2, 3), torch.zeros(2, 4), reduction="sum"),
            "student is (2, 3), teacher (2, 4)",
        ),
        (
            lambda: masked_l2(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.ones(2, 4), reduction="sum"),
            "mask is (2, 4), student (2, 3, 4)",
        ),
        (
            lambda: bev_response_l2(torch.zeros(2, 3, 4), torch.zeros(2, 9, 4), reduction="sum"),
            "student is (2, 3, 4), teacher (2, 9, 4)",
        ),
        (lambda: attention_l2(torch.zeros(2, 3), torch.zeros(2, 3), reduction="sum"), "student is (2, 3)"),
        (
            lambda: masked_l2(torch.zeros(2), torch.zeros(2), reduction="total"),
            "reduction is 'total'; expected one of",
        ),
    ],
)
def test_errors_name_the_shapes_found(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
