"""Masked and attention L2 of one tensor and of several, against the reference."""

import re
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from bevkd2.ops import Reduction, attention_l2, masked_l2
from tests.ops.references import masked_l2_reference
from tests.tolerance import assert_same_sum

REDUCTIONS = get_args(Reduction)


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(shape, generator=generator).to(dtype) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dims", [None, 1, 2, 3, 5])
def test_masks_of_any_dimensions_match_the_reference(dims: int | None, reduction: Any) -> None:
    student, teacher = make((2, 7, 3, 2, 5))
    for kind in ("bool", "float", "int"):
        mask = None
        if dims is not None:
            drawn = torch.rand(student.shape[:dims], generator=torch.Generator().manual_seed(1))
            mask = {"bool": drawn > 0.4, "float": drawn * (drawn > 0.3), "int": (drawn * 4).int()}[kind]
        leaf, twin = student.clone().requires_grad_(), student.double().requires_grad_()
        loss = masked_l2(leaf, teacher, mask, reduction=reduction, loss_weight=0.5)
        expected = 0.5 * masked_l2_reference(twin, teacher, mask, reduction=reduction)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-7)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(leaf.grad.double(), twin.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_losses_and_gradients_of_any_dtype_match_the_reference(dtype: torch.dtype, reduction: Any) -> None:
    student, teacher = make((2, 9, 2, 4, 3), dtype)
    mask = torch.rand(2, 9) > 0.3
    leaf, twin = student.clone().requires_grad_(), student.double().requires_grad_()
    loss = attention_l2(leaf, teacher.float(), mask, reduction=reduction)
    expected = masked_l2_reference(twin, teacher.double(), mask, reduction=reduction)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(leaf.grad.double(), twin.grad, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_layers_in_one_call_equal_separate_calls(reduction: Any) -> None:
    layers = [make((2, 9, 2, 4, 3)), make((2, 9, 4, 1, 2), seed=1)]
    mask = torch.rand(2, 9) > 0.3
    losses = attention_l2([s for s, _ in layers], [t for _, t in layers], mask, reduction=reduction)
    assert losses.shape == (2,)
    for loss, (student, teacher) in zip(losses, layers, strict=True):
        assert torch.equal(loss, attention_l2(student, teacher, mask, reduction=reduction))


def test_a_mask_of_camera_counts_sums_over_the_visible_pairs() -> None:
    student, teacher = make((2, 9, 2, 4, 3))
    seen = torch.rand(2, 6, 9, generator=torch.Generator().manual_seed(1)) > 0.6  # (B, cameras, queries)
    pairs = seen.nonzero()
    squares = (
        (student[pairs[:, 0], pairs[:, 2]] - teacher[pairs[:, 0], pairs[:, 2]]).square().flatten(1).sum(1)
    )
    counts = seen.sum(1)
    terms = len(pairs) * student[0, 0].numel()
    assert_same_sum(attention_l2(student, teacher, counts, reduction="sum"), squares.sum() / 2, terms)
    assert_same_sum(attention_l2(student, teacher, counts, reduction="cell"), squares.mean(), terms)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compiles_in_one_graph_with_dynamic_shapes(reduction: Any) -> None:
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        return attention_l2(student, teacher, mask, reduction=reduction) * 3

    student, teacher = make((2, 9, 2, 4, 3))
    mask = torch.rand(2, 9) > 0.3
    leaf = student.clone().requires_grad_()
    (compiled,) = torch.autograd.grad(loss(leaf, teacher, mask), leaf)
    (eager,) = torch.autograd.grad(3 * attention_l2(leaf, teacher, mask, reduction=reduction), leaf)
    torch.testing.assert_close(compiled, eager)


def test_transposed_features_equal_contiguous_ones() -> None:
    student, teacher = make((2, 8, 30))  # (B, C, pixels)
    mask = torch.rand(2, 30) > 0.3
    leaf = student.clone().requires_grad_()
    masked_l2(leaf.transpose(1, 2), teacher.transpose(1, 2), mask, reduction="mean").backward()
    expected = student.transpose(1, 2).contiguous().requires_grad_()
    masked_l2(expected, teacher.transpose(1, 2), mask, reduction="mean").backward()
    assert torch.equal(leaf.grad, expected.grad.transpose(1, 2))


def test_errors_name_what_was_found() -> None:
    student, teacher = make((2, 3, 4))
    with pytest.raises(ValueError, match="one of student and teacher is a list"):
        masked_l2([student], teacher, reduction="sum")
    with pytest.raises(ValueError, match=re.escape("1 levels of the student, 2 of the teacher")):
        masked_l2([student], [teacher] * 2, reduction="sum")
    with pytest.raises(ValueError, match="weights require a gradient"):
        masked_l2(student, teacher, torch.ones(2, 3, requires_grad=True), reduction="sum")
