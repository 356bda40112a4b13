"""Channel-wise and pixel-wise KL: values, gradients, memory layouts, dtypes, autograd and compilation."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bevkd2.ops import channel_wise_kl, pixel_wise_kl
from tests.ops.references import channel_wise_kl_reference, pixel_wise_kl_reference

OPS = {
    "channel": (channel_wise_kl, channel_wise_kl_reference),
    "pixel": (pixel_wise_kl, pixel_wise_kl_reference),
}
LAYOUTS = [torch.contiguous_format, torch.channels_last]
both = pytest.mark.parametrize("kind", OPS)


def pair(
    *shape: int, dtype: torch.dtype = torch.float32, layout: torch.memory_format = torch.contiguous_format
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        (3 * torch.randn(shape, generator=generator)).to(dtype).to(memory_format=layout) for _ in range(2)
    )
    return student.requires_grad_(), teacher


def row_weights(kind: str, shape: tuple[int, ...]) -> Tensor:
    batch, channels, height, width = shape
    size = (batch, channels) if kind == "channel" else (batch, height, width)
    weights = torch.rand(size, generator=torch.Generator().manual_seed(1))
    weights[0, 0] = 0
    return weights


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(loss, student)[0]


@both
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
# one entry, tails of eight, more than a chunk of entries, more than a tile of rows
@pytest.mark.parametrize("shape", [(2, 12, 5, 9), (1, 1, 3, 3), (2, 3, 1, 1), (1, 70, 5, 14), (2, 9, 1, 8)])
def test_equals_the_reference(
    kind: str, layout: torch.memory_format, weighted: bool, shape: tuple[int, ...]
) -> None:
    op, reference = OPS[kind]
    student, teacher = pair(*shape, layout=layout)
    weights = row_weights(kind, shape) if weighted else None
    loss = op(student, teacher, weights, temperature=2.0, loss_weight=0.7)
    expected = 0.7 * reference(student.double(), teacher, weights, temperature=2.0)[0]
    torch.testing.assert_close(loss, expected.float(), rtol=2e-6, atol=1e-7)
    ours = gradient(loss, student)
    assert ours.is_contiguous(memory_format=layout)
    torch.testing.assert_close(ours, gradient(expected, student), rtol=1e-5, atol=1e-7)


@both
def test_levels_in_one_call_match_the_reference(kind: str) -> None:
    op, reference = OPS[kind]
    levels = [pair(2, 6, 4, 7), pair(2, 5, 2, 3, layout=torch.channels_last)]
    students, teachers = [level[0] for level in levels], [level[1] for level in levels]
    upstream = torch.tensor([0.25, -3.0])
    losses = op(students, teachers)
    assert losses.shape == (2,)
    ours = torch.autograd.grad(losses, students, upstream)
    expected = torch.autograd.grad(reference(students, teachers), students, upstream)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@both
def test_normaliser_is_the_published_one(kind: str) -> None:
    """Channel-wise: T^2 / (C * B) times the sum; pixel-wise: the mean over positions."""
    student, teacher = pair(2, 3, 4, 5)
    dim = (2, 3) if kind == "channel" else 1
    ours = (student / 3).flatten(2).log_softmax(2 if kind == "channel" else 1)
    theirs = (teacher / 3).flatten(2).log_softmax(2 if kind == "channel" else 1)
    total = 9 * (theirs.exp() * (theirs - ours)).sum()
    count = 2 * (3 if dim == (2, 3) else 20)
    torch.testing.assert_close(OPS[kind][0](student, teacher, temperature=3.0), total / count)


@both
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradcheck(kind: str, layout: torch.memory_format) -> None:
    student, teacher = pair(2, 3, 2, 5, dtype=torch.float64, layout=layout)
    weights = row_weights(kind, student.shape)
    assert torch.autograd.gradcheck(lambda s: OPS[kind][0](s, teacher, weights, temperature=1.5), (student,))


@both
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float64),
    ],
    ids=str,
)
def test_student_and_teacher_may_differ_in_dtype(kind: str, ours: torch.dtype, theirs: torch.dtype) -> None:
    op, reference = OPS[kind]
    student, teacher = pair(2, 20, 3, 11, dtype=ours)[0], pair(2, 20, 3, 11, dtype=theirs)[1]
    with torch.autocast("cpu", torch.bfloat16):
        loss = op(student, teacher)
    assert loss.dtype == (torch.float64 if theirs == torch.float64 else torch.float32)
    expected = reference(student.double(), teacher.double())[0]
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    tolerance = {"rtol": 2**-8, "atol": 1e-7} if ours != torch.float32 else {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close(gradient(loss, student), gradient(expected, student).to(ours), **tolerance)


@both
def test_float16_gradients_include_the_loss_scale(kind: str) -> None:
    """The gradient of the mean alone is below float16's smallest number."""
    student, teacher = pair(1, 64, 40, 40)
    student, teacher = (student.detach() / 100).half().requires_grad_(), (teacher / 100).half()
    loss = OPS[kind][0](student, teacher, loss_weight=1e-4)
    scaled = gradient(loss * 65536, student)
    expected = gradient(OPS[kind][1](student.float(), teacher)[0] * 1e-4 * 65536, student)
    assert scaled.count_nonzero() > 0.9 * scaled.numel()
    torch.testing.assert_close(scaled, expected, rtol=2e-3, atol=1e-7)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_backward_may_run_again_on_a_retained_graph(kind: str, dtype: torch.dtype) -> None:
    student, teacher = pair(2, 3, 4, 5, dtype=dtype)
    loss = OPS[kind][0](student, teacher)
    given = torch.autograd.grad(loss, student, retain_graph=True)[0]
    once = given.clone()
    given.fill_(7)  # must not change the saved tensor
    double = torch.autograd.grad(2 * loss, student, retain_graph=True)[0]
    torch.testing.assert_close(double, 2 * once)
    assert torch.equal(torch.autograd.grad(loss, student)[0], once)


@both
def test_no_gradient_is_computed_unless_requested(kind: str) -> None:
    calls = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if "softmax_kl" in str(func):
                calls.append(len(out[1]))
            return out

    student, teacher = pair(2, 3, 4, 5)
    with Spy():
        with torch.no_grad():
            quiet = OPS[kind][0](student, teacher)
        OPS[kind][0](student.detach(), teacher)
        loud = OPS[kind][0](student, teacher)
    assert calls == [0, 0, 1]
    assert torch.equal(quiet, loud)


@both
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_entries_of_weight_zero_are_ignored_even_if_nan(kind: str, layout: torch.memory_format) -> None:
    student, teacher = pair(1, 9, 3, 4, layout=layout)
    weights = torch.ones(1, 9) if kind == "channel" else torch.ones(1, 3, 4)
    weights[0, 1] = 0
    expected = OPS[kind][0](student, teacher, weights)
    with torch.no_grad():
        (student[0] if kind == "channel" else student[0].transpose(0, 1))[1] = float("nan")
    loss = OPS[kind][0](student, teacher, weights)
    assert torch.equal(loss, expected)
    grad = gradient(loss, student)
    left_out = grad[0, 1] if kind == "channel" else grad[0, :, 1]
    assert not left_out.any()
    assert torch.isfinite(grad).all()


@both
def test_loss_without_weights_is_zero_with_a_graph(kind: str) -> None:
    student, teacher = pair(1, 3, 2, 2)
    loss = OPS[kind][0](student, teacher, torch.zeros_like(row_weights(kind, student.shape)))
    assert loss.item() == 0
    assert not gradient(loss, student).any()
    empty = torch.zeros(0, 3, 4, 5, requires_grad=True)
    loss = OPS[kind][0](empty, empty.detach())
    assert loss.item() == 0
    assert gradient(loss, empty).shape == empty.shape


@both
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_extreme_features_stay_finite(kind: str, layout: torch.memory_format) -> None:
    student, teacher = pair(2, 40, 3, 13, layout=layout)
    student = (student.detach().sign() * 1e4).requires_grad_()
    teacher = -1e4 * teacher.sign()
    loss = OPS[kind][0](student, teacher)
    torch.testing.assert_close(loss, OPS[kind][1](student.double(), teacher)[0].float(), rtol=1e-5, atol=0)
    assert torch.isfinite(gradient(loss, student)).all()


@both
def test_loss_and_gradient_of_equal_features_are_zero(kind: str) -> None:
    student, _ = pair(2, 40, 5, 13)
    loss = OPS[kind][0](student, student.detach())
    assert abs(loss.item()) < 1e-6
    assert gradient(loss, student).abs().max() < 1e-7


@both
def test_strided_features_and_mixed_layouts_give_the_same_gradients(kind: str) -> None:
    student, teacher = pair(2, 6, 8, 10)
    expected = gradient(OPS[kind][0](student, teacher), student)
    mixed = OPS[kind][0](student, teacher.to(memory_format=torch.channels_last))
    torch.testing.assert_close(gradient(mixed, student), expected)
    padded = torch.nn.functional.pad(student.detach(), (1, 1))[..., 1:-1].requires_grad_()
    turned = teacher.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(gradient(OPS[kind][0](padded, turned), padded), expected)


@both
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_results_are_bitwise_equal_for_any_number_of_threads(kind: str, layout: torch.memory_format) -> None:
    student, teacher = pair(3, 70, 9, 20, layout=layout)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            loss = OPS[kind][0](student, teacher)
            results.append((loss, gradient(loss, student)))
    finally:
        torch.set_num_threads(before)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_opcheck() -> None:
    student, teacher = pair(2, 3, 4, 5)
    views = [student.flatten(2), student.flatten(2).transpose(1, 2)]
    others = [teacher.flatten(2), teacher.flatten(2).transpose(1, 2)]
    weights, none = [torch.rand(2, 3), torch.rand(2, 20)], [torch.zeros(0)] * 2
    arguments = [
        (views, others, weights, torch.ones(2), 2.0, 1.5, True),
        (views, others, none, None, 2.0, 1.5, True),
        ([v.half() for v in views], others, none, None, 2.0, 1.5, False),
    ]
    for call in arguments:
        torch.library.opcheck(torch.ops.bevkd2.softmax_kl, call)
    with torch.no_grad():
        torch.library.opcheck(
            torch.ops.bevkd2.softmax_kl_backward, (torch.ones(2), views, others, none, None, 2.0, 1.5)
        )


@both
def test_compiles_in_one_graph_with_dynamic_shapes(kind: str) -> None:
    compiled = torch.compile(OPS[kind][0], fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 3, 4, 5), (1, 4, 6, 7)):
        student, teacher = pair(*shape)
        ours, expected = compiled(student, teacher), OPS[kind][0](student, teacher)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(gradient(3 * ours, student), gradient(3 * expected, student))


def test_second_derivatives_are_refused() -> None:
    student, teacher = pair(1, 2, 2, 2)
    with pytest.raises(RuntimeError, match="softmax_kl has no second derivative"):
        torch.autograd.grad(channel_wise_kl(student, teacher), student, create_graph=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: channel_wise_kl(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3)),
            "student is (1, 2, 3, 3), teacher (1, 4, 3, 3)",
        ),
        (
            lambda: pixel_wise_kl(
                torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3), torch.zeros(1, 2), temperature=1.0
            ),
            "weights are (1, 2); expected (B, H, W) = (1, 3, 3)",
        ),
        (
            lambda: channel_wise_kl(
                torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3), torch.zeros(3), temperature=1.0
            ),
            "weights are (3,); expected (C,) or (B, C) = (1, 2)",
        ),
        (
            lambda: channel_wise_kl([torch.zeros(1, 2, 3, 3)], [torch.zeros(1, 2, 3, 3)], []),
            "0 weights for 1 levels",
        ),
        (
            lambda: channel_wise_kl(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3), temperature=0.0),
            "temperature is 0.0",
        ),
    ],
)
def test_errors_name_what_was_found(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
