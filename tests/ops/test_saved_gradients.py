"""How the upstream gradient reaches gradients that the forward pass made."""

import pytest
import torch
from torch import Tensor

from bevkd2.ops import masked_l2, saved_gradients
from bevkd2.ops.saved_gradients import gradients_in_forward


def loss_of(student: Tensor) -> Tensor:
    return masked_l2(student, torch.zeros_like(student), reduction="sum")


@pytest.mark.parametrize("upstream", [1.0, 0.01, -3.0])
def test_gradients_of_a_kept_graph_are_the_caller_s_own(upstream: float) -> None:
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
def test_steps_accumulate_into_a_leaf(upstream: float) -> None:
    student = torch.randn(1, 4, 5, requires_grad=True)
    for _ in range(3):
        (loss_of(student) * upstream).backward()
    torch.testing.assert_close(student.grad, 6 * upstream * student.detach())
    loss = loss_of(student) * upstream
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(student.grad, 10 * upstream * student.detach())


def test_one_student_in_two_losses() -> None:
    student = torch.randn(1, 4, 5, requires_grad=True)
    (loss_of(student) + 0.5 * loss_of(student)).backward()
    torch.testing.assert_close(student.grad, 3 * student.detach())


def test_a_graph_that_was_not_kept_cannot_be_walked_again() -> None:
    student = torch.randn(1, 4, 5, requires_grad=True)
    loss = 2 * loss_of(student)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_are_the_same_where_every_graph_counts_as_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    student = torch.randn(1, 4, 5, requires_grad=True)
    expected = torch.autograd.grad(3 * loss_of(student), student)[0]
    monkeypatch.setattr(saved_gradients, "_keeps_graph", lambda: True)
    assert torch.equal(torch.autograd.grad(3 * loss_of(student), student)[0], expected)


def test_gradients_are_made_in_forward_only_where_they_are_wanted_and_fit() -> None:
    plain = torch.zeros(2)
    wanted = torch.zeros(2, requires_grad=True)
    assert gradients_in_forward([plain, wanted])
    assert not gradients_in_forward([plain])
    assert not gradients_in_forward([wanted.detach().half().requires_grad_()])
    with torch.no_grad():
        assert not gradients_in_forward([wanted])
