"""Gradients that the forward pass computes, scaled by the upstream gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bevkd2.ops import gradients, masked_l2
from bevkd2.ops.gradients import gradients_in_forward, refuse_second_derivative


def loss_of(student: Tensor) -> Tensor:
    return masked_l2(student, torch.zeros_like(student), reduction="sum")


@pytest.mark.parametrize("upstream", [1.0, 0.01, -3.0])
def test_gradients_of_a_retained_graph_do_not_share_memory(upstream: float) -> None:
    student = torch.randn(1, 4, 5, requires_grad=True)
    loss = loss_of(student) * upstream
    first = torch.autograd.grad(loss, student, retain_graph=True)[0]
    before = first.clone()
    first.mul_(7)
    second = torch.autograd.grad(loss, student, retain_graph=True)[0]
    third = torch.autograd.grad(loss, student)[0]
    torch.testing.assert_close(before, 2 * upstream * student.detach())
    assert torch.equal(second, before) and torch.equal(third, before)


@pytest.mark.parametrize("upstream", [1.0, 0.01])
def test_gradients_accumulate_into_a_leaf(upstream: float) -> None:
    student = torch.randn(1, 4, 5, requires_grad=True)
    for _ in range(3):
        (loss_of(student) * upstream).backward()
    torch.testing.assert_close(student.grad, 6 * upstream * student.detach())
    loss = loss_of(student) * upstream
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(student.grad, 10 * upstream * student.detach())


def test_gradients_of_two_losses_of_one_student_add_up() -> None:
    student = torch.randn(1, 4, 5, requires_grad=True)
    (loss_of(student) + 0.5 * loss_of(student)).backward()
    torch.testing.assert_close(student.grad, 3 * student.detach())


def test_a_freed_graph_refuses_a_second_backward() -> None:
    student = torch.randn(1, 4, 5, requires_grad=True)
    loss = 2 * loss_of(student)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_do_not_depend_on_whether_the_graph_counts_as_retained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = torch.randn(1, 4, 5, requires_grad=True)
    expected = torch.autograd.grad(3 * loss_of(student), student)[0]
    monkeypatch.setattr(gradients, "_keeps_graph", lambda: True)
    assert torch.equal(torch.autograd.grad(3 * loss_of(student), student)[0], expected)


def test_forward_computes_gradients_only_if_requested_and_not_in_float16() -> None:
    plain = torch.zeros(2)
    wanted = torch.zeros(2, requires_grad=True)
    assert gradients_in_forward([plain, wanted])
    assert not gradients_in_forward([plain])
    assert not gradients_in_forward([wanted.detach().half().requires_grad_()])
    with torch.no_grad():
        assert not gradients_in_forward([wanted])


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        refuse_second_derivative("doubled")
        return 2 * grad


def test_a_formula_refuses_create_graph_and_nothing_else() -> None:
    x = torch.ones(1, requires_grad=True)
    assert torch.autograd.grad(_Doubled.apply(x), x)[0].item() == 2
    with pytest.raises(RuntimeError, match="bevkd2::doubled has no second derivative; do not use create_gra"):
        torch.autograd.grad(_Doubled.apply(x), x, create_graph=True)
