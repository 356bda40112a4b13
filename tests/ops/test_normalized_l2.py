"""Distance of normalised features: values, gradients, memory layouts, dtypes, autograd and compilation."""

import re

import pytest
import torch
from torch import Tensor

from bevkd2.ops import normalized_l2
from tests.ops.references import normalized_l2_reference

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def pair(
    *shape: int, dtype: torch.dtype = torch.float32, layout: torch.memory_format = torch.contiguous_format
) -> tuple[Tensor, Tensor]:
    """Student and teacher whose channels differ in mean and deviation."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.5, 2, shape[1])[:, None, None]
    student, teacher = (
        (spread * torch.randn(shape, generator=generator) + spread).to(dtype).to(memory_format=layout)
        for _ in range(2)
    )
    return student.requires_grad_(), teacher


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(loss, student)[0]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
# tails of eight; two entries; several samples of more than a block of 512 entries
@pytest.mark.parametrize("shape", [(2, 5, 5, 9), (1, 3, 1, 2), (3, 2, 25, 43), (2, 16, 8, 8)])
def test_equals_the_reference(layout: torch.memory_format, shape: tuple[int, ...]) -> None:
    student, teacher = pair(*shape, layout=layout)
    loss = normalized_l2(student, teacher, loss_weight=0.7)
    expected = 0.7 * normalized_l2_reference(student.double(), teacher.double())[0]
    torch.testing.assert_close(loss, expected.float(), rtol=2e-6, atol=1e-7)
    ours = gradient(1.7 * loss, student)
    assert ours.is_contiguous(memory_format=layout)
    theirs = gradient(1.7 * expected, student)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item() + 1e-6)


def test_levels_in_one_call_match_the_reference() -> None:
    levels = [pair(2, 6, 4, 7), pair(2, 5, 2, 3, layout=torch.channels_last)]
    students, teachers = [level[0] for level in levels], [level[1] for level in levels]
    upstream = torch.tensor([0.25, -3.0])
    losses = normalized_l2(students, teachers)
    assert losses.shape == (2,)
    ours = torch.autograd.grad(losses, students, upstream)
    expected = torch.autograd.grad(normalized_l2_reference(students, teachers), students, upstream)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_is_one_minus_the_correlation_and_blind_to_scale_and_offset() -> None:
    student, teacher = pair(2, 4, 6, 7)
    rows = [features.detach().transpose(0, 1).flatten(1).double() for features in (student, teacher)]
    correlations = [torch.corrcoef(torch.stack(channel))[0, 1] for channel in zip(*rows, strict=True)]
    expected = (1 - torch.stack(correlations).mean()) * (84 - 1) / 84
    torch.testing.assert_close(normalized_l2(student, teacher).double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(normalized_l2(student, 3 * teacher - 5), normalized_l2(student, teacher))
    scaled = normalized_l2(student, 2 * student.detach() + 1)
    assert scaled < 1e-10
    assert gradient(scaled, student).abs().max() < 1e-7


def test_gradient_is_exact_for_a_student_near_its_teacher() -> None:
    """Where moments of nearly equal features cancel."""
    _, teacher = pair(2, 3, 40, 40)
    noise = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(1))
    student = (teacher + 1e-3 * noise).requires_grad_()
    loss = normalized_l2(student, teacher)
    wide = student.detach().double().requires_grad_()
    expected = normalized_l2_reference(wide, teacher.double())[0]
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=0)
    ours, theirs = gradient(loss, student), gradient(expected, wide)
    assert (ours - theirs).abs().max() < 2e-3 * theirs.abs().max()


def test_a_constant_channel_has_the_reference_s_gradient() -> None:
    student, teacher = pair(2, 3, 4, 4)
    with torch.no_grad():
        student[:, 1] = 0.25
    loss = normalized_l2(student, teacher, epsilon=0.1)
    expected = normalized_l2_reference(student, teacher, epsilon=0.1)[0]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, student), gradient(expected, student), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_constant_channels_have_deviation_zero(dtype: torch.dtype) -> None:
    """Of a student, of a teacher, and of both; 517 sums of 100.1 are not exact in float32."""
    student, teacher = pair(1, 4, 11, 47, dtype=dtype)
    with torch.no_grad():
        student[:, 1], teacher[:, 2] = 100.1, -0.3
        student[:, 3], teacher[:, 3] = 1e4 / 3, 0.7
    loss = normalized_l2(student, teacher)
    wide = student.detach().double().requires_grad_()
    expected = normalized_l2_reference(wide, teacher.double())[0]
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    scale = 2.0**-6 if dtype == torch.float16 else 1.0  # 1 / epsilon is more than float16 holds
    ours, theirs = gradient(scale * loss, student), gradient(scale * expected, wide)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    least = 2**-25 if dtype == torch.float16 else 0  # half of the smallest number
    for channel in range(4):
        largest = theirs[:, channel].abs().max().item()
        assert (ours - theirs)[:, channel].abs().max() <= tolerance * largest + least


def test_a_large_offset_costs_no_more_than_its_rounding() -> None:
    student, teacher = (1e3 + features.detach() for features in pair(2, 3, 25, 43))
    student.requires_grad_()
    loss = normalized_l2(student, teacher)
    wide = student.detach().double().requires_grad_()
    expected = normalized_l2_reference(wide, teacher.double())[0]
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    ours, theirs = gradient(loss, student), gradient(expected, wide)
    assert (ours - theirs).abs().max() < 2e-4 * theirs.abs().max()  # half a unit in the last place of 1000


@pytest.mark.parametrize("kind", ["every second column", "expanded", "transposed", "sliced channels"])
def test_any_strides_are_read(kind: str) -> None:
    student, teacher = pair(2, 6, 8, 10)
    view = {
        "every second column": lambda x: x[..., ::2],
        "expanded": lambda x: x[:, :, :, :1].expand(-1, -1, -1, 5),
        "transposed": lambda x: x.transpose(2, 3),
        "sliced channels": lambda x: x[:, 1::2],
    }[kind]
    loss = normalized_l2(view(student), view(teacher))
    expected = normalized_l2_reference(view(student), view(teacher))[0]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient(loss, student), gradient(expected, student), rtol=1e-4, atol=1e-6)


def test_gradcheck() -> None:
    student, teacher = pair(2, 3, 2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: normalized_l2(s, teacher, epsilon=0.3), (student,))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float64),
    ],
    ids=str,
)
def test_student_and_teacher_may_differ_in_dtype(ours: torch.dtype, theirs: torch.dtype) -> None:
    student, teacher = pair(2, 6, 5, 11, dtype=ours)[0], pair(2, 6, 5, 11, dtype=theirs)[1]
    with torch.autocast("cpu", torch.bfloat16):
        loss = normalized_l2(student, teacher)
    assert loss.dtype == (torch.float64 if theirs == torch.float64 else torch.float32)
    expected = normalized_l2_reference(student.double(), teacher.double())[0]
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    tolerance = {"rtol": 2**-8, "atol": 1e-6} if ours != torch.float32 else {"rtol": 1e-4, "atol": 1e-7}
    torch.testing.assert_close(gradient(loss, student), gradient(expected, student).to(ours), **tolerance)


def test_float16_gradients_include_the_loss_scale() -> None:
    """Float16 cannot hold the gradient of the 0.01-weighted mean without the loss scaler's 65536."""
    student, teacher = pair(1, 16, 200, 200, dtype=torch.float16)
    scaled = gradient(655.36 * normalized_l2(student, teacher), student)
    assert scaled.count_nonzero() > 0.9 * scaled.numel()
    wide = student.detach().float().requires_grad_()
    expected = gradient(655.36 * normalized_l2_reference(wide, teacher)[0], wide)
    torch.testing.assert_close(scaled.float(), expected, rtol=2e-3, atol=1e-6)


def test_backward_may_run_again_on_a_retained_graph() -> None:
    student, teacher = pair(2, 3, 4, 5)
    loss = normalized_l2(student, teacher)
    once = torch.autograd.grad(loss, student, retain_graph=True)[0].clone()
    torch.testing.assert_close(torch.autograd.grad(2 * loss, student, retain_graph=True)[0], 2 * once)
    assert torch.equal(gradient(loss, student), once)


def test_nothing_is_saved_without_a_gradient() -> None:
    student, teacher = (features.detach().flatten(2) for features in pair(2, 3, 4, 5))
    for need_grad in (False, True):
        _, grads = torch.ops.bevkd2.normalized_l2([student], [teacher], 1.0, 1e-6, need_grad)
        assert len(grads) == need_grad
    loss = normalized_l2(*(features.detach() for features in pair(2, 3, 4, 5)))
    assert not loss.requires_grad


def test_results_are_bitwise_equal_for_any_number_of_threads() -> None:
    student, teacher = pair(2, 37, 20, 30)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            loss = normalized_l2(student, teacher)
            results.append((loss, gradient(loss, student)))
    finally:
        torch.set_num_threads(before)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_opcheck(layout: torch.memory_format) -> None:
    student, teacher = (features.flatten(2) for features in pair(2, 3, 4, 5, layout=layout))
    torch.library.opcheck(
        torch.ops.bevkd2.normalized_l2, ([student.detach().requires_grad_()], [teacher], 0.7, 1e-6, True)
    )
    saved = (torch.ones(1), [student.detach()], [teacher], 0.7, 1e-6)
    torch.library.opcheck(torch.ops.bevkd2.normalized_l2_backward, saved)


def test_compiles_in_one_graph_with_dynamic_shapes() -> None:
    compiled = torch.compile(normalized_l2, fullgraph=True, dynamic=True, backend="aot_eager")
    for width in (7, 10):
        student, teacher = pair(2, 3, 5, width)
        ours, expected = compiled(student, teacher), normalized_l2(student, teacher)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(gradient(ours, student), gradient(expected, student))


def test_second_derivatives_are_refused() -> None:
    student, teacher = pair(2, 3, 4, 5)
    with pytest.raises(RuntimeError, match="normalized_l2 has no second derivative"):
        torch.autograd.grad(normalized_l2(student, teacher), student, create_graph=True)


@pytest.mark.parametrize(
    ("student", "teacher", "changes", "message"),
    [
        ((2, 3, 4, 5), (2, 3, 4, 6), {}, "student is (2, 3, 4, 5), teacher (2, 3, 4, 6); expected the same"),
        ((1, 3, 1, 1), (1, 3, 1, 1), {}, "student is (1, 3, 1, 1); a channel needs at least two entries"),
        ((2, 3, 4, 5), (2, 3, 4, 5), {"epsilon": 0.0}, "epsilon is 0.0; expected a positive number"),
    ],
)
def test_errors_name_what_was_found(student, teacher, changes, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        normalized_l2(torch.zeros(student), torch.zeros(teacher), **changes)
