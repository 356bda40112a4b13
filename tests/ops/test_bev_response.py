"""BEV response loss: values, gradients, memory layouts, dtypes, autograd and compilation."""

import itertools
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bevkd2.ops import bev_response_l2
from tests.ops.references import bev_response_l2_reference
from tests.tolerance import assert_same_sum

REDUCTIONS = ("sum", "cell", "mean", "norm")


def embedding(batch: int, cells: int, width: int, cells_adjacent: bool, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if cells_adjacent:
        return torch.randn(batch, width, cells, generator=generator).transpose(1, 2)
    return torch.randn(batch, cells, width, generator=generator)


def pair(
    cells: int = 21, width: int = 10, theirs: int = 13, adjacent: tuple[bool, bool] = (False, False)
) -> tuple[Tensor, Tensor]:
    student = embedding(2, cells, width, adjacent[0], 0)
    return student.requires_grad_(), embedding(2, cells, theirs, adjacent[1], 1)


def half_of(cells: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    weights = torch.rand(2, cells, generator=generator)
    return weights * (torch.rand(2, cells, generator=generator) < 0.5)


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(loss, student)[0]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("adjacent", list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("masked", [False, True])
# tails of eight cells and of eight and of 32 channels; more than one group of 512 cells
@pytest.mark.parametrize("sizes", [(21, 10, 13), (1100, 3, 40), (1, 1, 2)])
def test_equals_the_reference(
    reduction: str, adjacent: tuple[bool, bool], masked: bool, sizes: tuple[int, int, int]
) -> None:
    student, teacher = pair(*sizes, adjacent)
    mask = half_of(sizes[0]) if masked else None
    loss = bev_response_l2(student, teacher, mask, reduction=reduction, loss_weight=0.3)
    expected = 0.3 * bev_response_l2_reference(student.double(), teacher, mask, reduction=reduction)
    torch.testing.assert_close(loss, expected.float(), rtol=1e-5, atol=1e-8)
    ours = gradient(1.7 * loss, student)
    assert_same_sum(ours, gradient(1.7 * expected, student), sum(sizes))  # over channels, then over cells


def test_image_layouts_equal_the_flat_layout() -> None:
    student, teacher = torch.randn(2, 6, 5, 7), torch.randn(2, 9, 5, 7)
    mask = torch.rand(2, 5, 7) < 0.5
    flat = bev_response_l2(
        student.flatten(2).transpose(1, 2),
        teacher.flatten(2).transpose(1, 2),
        mask.flatten(1),
        reduction="norm",
    )
    for layout in (torch.contiguous_format, torch.channels_last):
        ours = student.to(memory_format=layout).requires_grad_()
        loss = bev_response_l2(ours, teacher.to(memory_format=layout), mask, reduction="norm")
        torch.testing.assert_close(loss, flat)
        assert gradient(loss, ours).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("adjacent", [False, True])
def test_gradcheck(reduction: str, adjacent: bool) -> None:
    student, teacher = pair(4, 3, 5, (adjacent, adjacent))
    student, teacher, mask = student.detach().double().requires_grad_(), teacher.double(), half_of(4).double()
    assert torch.autograd.gradcheck(
        lambda s: bev_response_l2(s, teacher, mask, reduction=reduction), (student,)
    )


@pytest.mark.parametrize("adjacent", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float16),
        (torch.float32, torch.float16),
        (torch.float16, torch.float64),
    ],
    ids=str,
)
def test_student_and_teacher_may_differ_in_dtype(
    adjacent: bool, ours: torch.dtype, theirs: torch.dtype
) -> None:
    student, teacher = pair(30, 20, 11, (adjacent, adjacent))
    student, teacher = student.detach().to(ours).requires_grad_(), teacher.to(theirs)
    with torch.autocast("cpu", torch.bfloat16):
        loss = bev_response_l2(student, teacher, reduction="norm")
    assert loss.dtype == (torch.float64 if theirs == torch.float64 else torch.float32)
    expected = bev_response_l2_reference(student.double(), teacher.double(), reduction="norm")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    tolerance = {"rtol": 2**-8, "atol": 1e-6} if ours != torch.float32 else {"rtol": 1e-4, "atol": 1e-7}
    torch.testing.assert_close(gradient(loss, student), gradient(expected, student).to(ours), **tolerance)


def test_float16_gradients_include_the_loss_scale() -> None:
    """Float16 cannot hold the gradient of the 0.01-weighted mean without the loss scaler's 65536."""
    student, teacher = (torch.randn(1, 20000, 32).half() for _ in range(2))
    student.requires_grad_()
    loss = 0.01 * bev_response_l2(student, teacher, reduction="mean")
    scaled = gradient(65536 * loss, student)
    assert scaled.count_nonzero() > 0.9 * scaled.numel()
    wide = student.detach().float().requires_grad_()
    expected = gradient(655.36 * bev_response_l2_reference(wide, teacher, reduction="mean"), wide)
    torch.testing.assert_close(scaled.float(), expected, rtol=2e-3, atol=6e-8)


def test_backward_may_run_again_on_a_retained_graph() -> None:
    student, teacher = pair()
    loss = bev_response_l2(student, teacher, reduction="norm")
    once = torch.autograd.grad(loss, student, retain_graph=True)[0].clone()
    torch.testing.assert_close(torch.autograd.grad(2 * loss, student, retain_graph=True)[0], 2 * once)
    assert torch.equal(gradient(loss, student), once)


def test_nothing_is_saved_without_a_gradient() -> None:
    student, teacher = pair()
    for need_grad, samples in ((False, 0), (True, 2)):
        with torch.no_grad():
            _, differences, scales = torch.ops.bevkd2.bev_response_l2(
                student, teacher, None, 2, 1.0, need_grad
            )
        assert differences.shape == (samples, 21)
        assert scales.shape == (samples,)
    with torch.no_grad():
        quiet = bev_response_l2(student, teacher, reduction="norm")
    assert not quiet.requires_grad
    assert torch.equal(quiet, bev_response_l2(student, teacher, reduction="norm"))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("adjacent", [False, True])
def test_cells_of_weight_zero_are_ignored_even_if_nan(reduction: str, adjacent: bool) -> None:
    student, teacher = pair(adjacent=(adjacent, adjacent))
    mask = half_of(21) > 0
    expected = bev_response_l2(student, teacher, mask, reduction=reduction)
    with torch.no_grad():
        student[~mask] = float("nan")
    loss = bev_response_l2(student, teacher, mask, reduction=reduction)
    assert torch.equal(loss, expected)
    grad = gradient(loss, student)
    assert not grad[~mask].any()
    assert grad[mask].all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_loss_without_counted_cells_is_zero_with_a_graph(reduction: str) -> None:
    for shape in ((0, 5, 4), (2, 0, 4), (2, 5, 4)):
        student = torch.randn(shape, requires_grad=True)
        mask = torch.zeros(shape[:2], dtype=torch.bool)
        loss = bev_response_l2(student, torch.randn(shape), mask, reduction=reduction)
        assert loss.item() == 0
        assert torch.equal(gradient(loss, student), torch.zeros(shape))


def test_gradients_of_strided_students_equal_contiguous_ones() -> None:
    student, teacher = pair(30, 8, 8)
    expected = gradient(bev_response_l2(student, teacher, reduction="norm"), student)
    spread = torch.zeros(2, 30, 16)
    spread[..., ::2] = student.detach()
    ours = spread[..., ::2].requires_grad_()
    torch.testing.assert_close(gradient(bev_response_l2(ours, teacher, reduction="norm"), ours), expected)
    cut = torch.nn.functional.pad(student.detach(), (0, 3))[..., :8].requires_grad_()
    torch.testing.assert_close(gradient(bev_response_l2(cut, teacher, reduction="norm"), cut), expected)


@pytest.mark.parametrize("adjacent", [False, True])
def test_results_are_bitwise_equal_for_any_number_of_threads(adjacent: bool) -> None:
    student, teacher = pair(3000, 12, 20, (adjacent, adjacent))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            loss = bev_response_l2(student, teacher, half_of(3000), reduction="norm")
            results.append((loss, gradient(loss, student)))
    finally:
        torch.set_num_threads(before)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_opcheck() -> None:
    student, teacher = pair()
    for weights in (None, half_of(21)):
        torch.library.opcheck(torch.ops.bevkd2.bev_response_l2, (student, teacher, weights, 2, 1.0, True))
    saved = (torch.ones(()), student.detach(), torch.rand(2, 21), torch.rand(2))
    torch.library.opcheck(torch.ops.bevkd2.bev_response_l2_backward, saved)


def test_compiles_in_one_graph_with_dynamic_shapes() -> None:
    compiled = torch.compile(bev_response_l2, fullgraph=True, dynamic=True, backend="aot_eager")
    for cells in (21, 34):
        student, teacher = pair(cells)
        ours = compiled(student, teacher, half_of(cells) > 0, reduction="norm")
        expected = bev_response_l2(student, teacher, half_of(cells) > 0, reduction="norm")
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(gradient(ours, student), gradient(expected, student))


def test_second_derivatives_are_refused() -> None:
    student, teacher = pair()
    with pytest.raises(RuntimeError, match="bev_response_l2 has no second derivative"):
        torch.autograd.grad(bev_response_l2(student, teacher, reduction="sum"), student, create_graph=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bev_response_l2(*torch.zeros(2, 2, 3, 4), torch.ones(2, 4), reduction="sum"),
            "mask is (2, 4), student (2, 3, 4); expected the cells (2, 3)",
        ),
        (
            lambda: bev_response_l2(torch.zeros(2, 3), torch.zeros(2, 3), reduction="sum"),
            "student is (2, 3); expected (B, N, C) or (B, C, H, W)",
        ),
        (
            lambda: bev_response_l2(torch.zeros(2, 3, 4), torch.zeros(2, 3, 2, 2), reduction="sum"),
            "student is (2, 3, 4), teacher (2, 3, 2, 2)",
        ),
        (
            lambda: bev_response_l2(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), reduction="total"),
            "reduction is 'total'",
        ),
    ],
)
def test_errors_name_the_shapes_found(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
