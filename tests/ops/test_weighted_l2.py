"""Weighted squared distance over levels, against its plain-torch reference."""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bevkd2.ops import weighted_l2
from tests.ops.references import weighted_l2_reference

SHAPES = {
    "pyramid": [(2, 5, 6, 9), (2, 7, 3, 5), (2, 4, 1, 1)],
    "long rows": [(2, 3, 137, 241)],  # longer than a chunk
    "many rows": [(1, 70, 23, 31)],  # several chunks of whole rows
    "flat": [(3, 11), (3, 40)],
    "one pixel": [(2, 33, 1, 1)],
    "one channel": [(2, 1, 9, 8)],
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Of the largest number: sums of up to 10^5 terms in float32; the rounding of a gradient's dtype.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}


def make(
    shapes: list[tuple[int, ...]],
    student: torch.dtype = torch.float32,
    teacher: torch.dtype = torch.float32,
    kind: str = "both",
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments with weights of pixels, of channels, of both, or none; a fifth of them zero."""
    generator = torch.Generator().manual_seed(seed)

    def weights(shape: tuple[int, ...]) -> Tensor:
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
        return drawn * (drawn > 0.2)

    return {
        "student": [torch.randn(s, generator=generator, dtype=torch.float64).to(student) for s in shapes],
        "teacher": [torch.randn(s, generator=generator, dtype=torch.float64).to(teacher) for s in shapes],
        "scale": torch.rand(len(shapes), shapes[0][0], generator=generator, dtype=torch.float64) + 0.1,
        "weights": [weights((s[0], *s[2:])) for s in shapes] if kind in ("pixels", "both") else None,
        "channel_weights": [weights(s[:2]) for s in shapes] if kind in ("channels", "both") else None,
    }


def gradients(op: Callable, arguments: dict, upstream: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """Losses, and the gradients of their sum weighed by `upstream`."""
    leaves = [level.detach().clone().requires_grad_() for level in arguments["student"]]
    loss = op(**{**arguments, "student": leaves})
    loss.backward(torch.ones_like(loss) if upstream is None else upstream.to(loss))
    return loss.detach(), [leaf.grad for leaf in leaves]


def double(arguments: dict) -> dict:
    return {
        k: [t if t is None else t.double() for t in v] if isinstance(v, list) else v
        for k, v in arguments.items()
    }


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs()
    assert bool((error <= tolerance * expected.abs().max().clamp(min=1e-30)).all()), error.max()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("norm", [False, True], ids=["squared", "norm"])
@pytest.mark.parametrize("kind", ["none", "pixels", "channels", "both"])
@pytest.mark.parametrize("size", SHAPES)
def test_matches_the_reference(size: str, kind: str, norm: bool) -> None:
    for dtype in (torch.float64, torch.float32):
        arguments = make(SHAPES[size], dtype, dtype, kind)
        upstream = torch.linspace(0.5, 2, len(SHAPES[size]))
        loss, grads = gradients(weighted_l2, {**arguments, "norm": norm}, upstream)
        expected, references = gradients(weighted_l2_reference, {**double(arguments), "norm": norm}, upstream)
        assert loss.dtype == dtype
        assert_close(loss, expected, TOLERANCE[dtype])
        for grad, reference in zip(grads, references, strict=True):
            assert_close(grad, reference, TOLERANCE[dtype])


@pytest.mark.parametrize("student", DTYPES, ids=str)
@pytest.mark.parametrize("teacher", DTYPES, ids=str)
def test_student_and_teacher_may_differ_in_dtype(student: torch.dtype, teacher: torch.dtype) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        arguments = make([(2, 11, 9, 13), (2, 8, 3, 4)], student, teacher)
        for name in ("student", "teacher"):
            arguments[name] = [level.to(memory_format=layout) for level in arguments[name]]
        loss, grads = gradients(weighted_l2, arguments)
        expected, references = gradients(weighted_l2_reference, double(arguments))
        wide = torch.float64 in (student, teacher)
        assert loss.dtype == (torch.float64 if wide else torch.float32)
        assert_close(loss, expected, 1e-12 if wide else 3e-6)
        for grad, reference in zip(grads, references, strict=True):
            assert grad.dtype == student
            assert_close(grad, reference, TOLERANCE[student] if student != torch.float64 else 1e-12)


def test_layouts_are_read_without_copies_and_give_equal_results() -> None:
    plain = make([(2, 12, 7, 9)])
    loss, grads = gradients(weighted_l2, plain)
    for ours, theirs in ((torch.channels_last,) * 2, (torch.channels_last, torch.contiguous_format)):
        arguments = {
            **plain,
            "student": [level.to(memory_format=ours) for level in plain["student"]],
            "teacher": [level.to(memory_format=theirs) for level in plain["teacher"]],
        }
        other, others = gradients(weighted_l2, arguments)
        assert_close(other, loss, 1e-6)
        assert torch.equal(others[0], grads[0])
        assert others[0].is_contiguous(memory_format=ours)
    strided = {
        **plain,
        "student": [level.movedim(3, 1).contiguous().movedim(1, 3) for level in plain["student"]],
    }
    assert torch.equal(gradients(weighted_l2, strided)[1][0], grads[0])


def test_flat_weights_are_concatenated_by_level() -> None:
    arguments = make(SHAPES["pyramid"], kind="pixels")
    flat = torch.cat([w.flatten(1) for w in arguments["weights"]], 1)
    assert torch.equal(weighted_l2(**{**arguments, "weights": flat}), weighted_l2(**arguments))


@pytest.mark.parametrize("weigh", [torch.Tensor.bool, torch.Tensor.half, torch.Tensor.int], ids=str)
def test_weights_may_be_of_any_dtype(weigh: Callable) -> None:
    arguments = make([(2, 3, 5, 4)], kind="pixels")
    arguments["weights"] = [weigh(4 * w) for w in arguments["weights"]]
    assert_close(weighted_l2(**arguments), weighted_l2_reference(**double(arguments)), 1e-6)


@pytest.mark.parametrize("kind", ["pixels", "channels"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_entries_of_weight_zero_may_be_nan(kind: str, layout: torch.memory_format) -> None:
    arguments = make([(2, 13, 7, 11)], kind=kind)
    expected, references = gradients(weighted_l2, arguments)
    for name in ("student", "teacher"):
        level = arguments[name][0].to(memory_format=layout, copy=True)
        if kind == "pixels":
            level.permute(0, 2, 3, 1)[arguments["weights"][0] == 0] = float("nan")
        else:
            level[arguments["channel_weights"][0] == 0] = float("nan")
        assert level.isnan().any()
        arguments[name] = [level]
    loss, grads = gradients(weighted_l2, arguments)
    assert_close(loss, expected, 1e-6)
    assert torch.equal(grads[0], references[0])


def test_nan_with_a_weight_gives_nan() -> None:
    for name in ("student", "teacher", "weights"):
        arguments = make([(1, 9, 5, 5)], kind="pixels")
        arguments["weights"] = [torch.ones(1, 5, 5)]
        arguments[name][0].view(-1)[12] = float("nan")
        assert bool(weighted_l2(**arguments).isnan().all()), name


@pytest.mark.parametrize("norm", [False, True], ids=["squared", "norm"])
def test_gradcheck(norm: bool) -> None:
    arguments = make([(2, 3, 2, 3), (2, 2, 1, 2)], torch.float64, torch.float64)
    leaves = [level.requires_grad_() for level in arguments.pop("student")]
    assert torch.autograd.gradcheck(lambda *s: weighted_l2(list(s), norm=norm, **arguments), leaves)


def raw(need_grad: bool, dtype: torch.dtype = torch.float32, norm: bool = False) -> tuple:
    generator = torch.Generator().manual_seed(0)
    student = [torch.randn(2, 3, 8, generator=generator).to(dtype), torch.randn(2, 8, 5).mT.to(dtype)]
    teacher = [torch.randn_like(level) for level in student]
    weights = [torch.rand(2, 8), torch.empty(0)]
    channels = [torch.empty(0), torch.rand(2, 5)]
    return (
        [s.requires_grad_() for s in student],
        teacher,
        weights,
        channels,
        torch.rand(2, 2),
        norm,
        need_grad,
    )


@pytest.mark.parametrize("need_grad", [True, False])
def test_opcheck(need_grad: bool) -> None:
    torch.library.opcheck(torch.ops.bevkd2.weighted_l2, raw(need_grad))


def test_opcheck_backward() -> None:
    student, *others, _, _ = raw(False)
    arguments = ([level.detach() for level in student], *others)
    torch.library.opcheck(torch.ops.bevkd2.weighted_l2_backward, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_compiles_in_one_graph_with_dynamic_shapes(dtype: torch.dtype) -> None:
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def step(student: list[Tensor], teacher: list[Tensor], scale: Tensor, weights: list[Tensor]) -> Tensor:
        return weighted_l2(student, teacher, scale, weights=weights).sum() * 2

    for shapes in ([(2, 5, 6, 9), (2, 7, 3, 5)], [(3, 5, 4, 4), (3, 7, 2, 6)]):
        arguments = make(shapes, dtype, dtype, "pixels")
        leaves = [level.clone().requires_grad_() for level in arguments["student"]]
        step(leaves, arguments["teacher"], arguments["scale"], arguments["weights"]).backward()
        _, expected = gradients(weighted_l2, arguments, torch.full((2,), 2.0))
        assert all(torch.equal(a.grad, b) for a, b in zip(leaves, expected, strict=True))


def test_backward_may_run_again_with_another_upstream_gradient() -> None:
    for dtype in (torch.float32, torch.float16):
        arguments = make([(2, 5, 4, 4)], dtype, dtype, "pixels")
        leaf = arguments["student"][0].requires_grad_()
        loss = weighted_l2(**arguments)
        once = [
            torch.autograd.grad(loss, leaf, torch.tensor([u]), retain_graph=True)[0] for u in (1.0, 3.0, 1.0)
        ]
        assert torch.equal(once[0], once[2])
        assert_close(once[1], 3 * once[0], TOLERANCE[dtype])
        before = once[0].clone()
        loss.backward(retain_graph=True)
        loss.backward(torch.tensor([2.0]))
        assert_close(leaf.grad, 3 * before, TOLERANCE[dtype])
        assert torch.equal(once[0], before)


def test_gradients_accumulate_over_steps() -> None:
    parts = [make([(1, 5, 4, 4)], kind="pixels", seed=s) for s in (0, 1)]
    weight = torch.randn(5, 5, 1, 1, requires_grad=True)
    for part in parts:
        weighted_l2(**{**part, "student": [torch.conv2d(part["student"][0], weight)]}).sum().backward()
    accumulated, weight.grad = weight.grad, None
    losses = [
        weighted_l2_reference(**{**part, "student": [torch.conv2d(part["student"][0], weight)]}).sum()
        for part in parts
    ]
    sum(losses).backward()
    assert_close(accumulated, weight.grad, 1e-5)


def test_float16_gradients_survive_a_small_weight_and_a_loss_scaler() -> None:
    """0.01 of a mean over ten million entries: made in the forward pass, every gradient would be zero."""
    student = torch.ones(1, 2, 64, 64, dtype=torch.float16, requires_grad=True)
    scale = torch.full((1, 1), 0.01 / 10_240_000)
    loss = weighted_l2([student], [torch.zeros(1, 2, 64, 64)], scale)
    (loss.sum() * 65536).backward()
    assert_close(student.grad, torch.full_like(student.grad, 2 * 65536 * 0.01 / 10_240_000), 2e-3)


def test_no_gradient_is_written_unless_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = torch.ops.bevkd2.weighted_l2

    def spy(*arguments: object) -> tuple:
        made.append(original(*arguments)[2])
        return original(*arguments)

    monkeypatch.setattr(torch.ops.bevkd2, "weighted_l2", spy)
    arguments = make([(1, 3, 4, 4)])
    assert not weighted_l2(**arguments).requires_grad
    arguments["student"][0].requires_grad_()
    with torch.no_grad():
        weighted_l2(**arguments)
    arguments["student"] = [arguments["student"][0].detach().half().requires_grad_()]
    assert weighted_l2(**arguments).requires_grad
    assert made == [[], [], []]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_second_derivatives_are_refused(dtype: torch.dtype) -> None:
    arguments = make([(1, 3, 4, 4)], dtype, dtype)
    leaf = arguments["student"][0].requires_grad_()
    with pytest.raises(RuntimeError, match="has no second derivative"):  # where depends on the dtype
        (grad,) = torch.autograd.grad(weighted_l2(**arguments).sum(), leaf, create_graph=True)
        grad.sum().backward()


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    for kind in ("none", "both"):
        arguments = make([shape, (shape[0], 2, 2, 2)], kind=kind)
        loss, grads = gradients(weighted_l2, arguments)
        expected, references = gradients(weighted_l2_reference, double(arguments))
        assert loss[0] == 0
        assert_close(loss, expected, 1e-6)
        assert [g.shape for g in grads] == [r.shape for r in references]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", ["long rows", "many rows"])
def test_bitwise_the_same_for_any_number_of_threads(size: str, dtype: torch.dtype, threads: Callable) -> None:
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        results.append(gradients(weighted_l2, make(SHAPES[size], dtype, dtype)))
    for loss, grads in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(grads, results[0][1], strict=True))


def test_autocast_does_not_change_the_result() -> None:
    arguments = make([(2, 5, 6, 9)])
    expected = weighted_l2(**arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(weighted_l2(**arguments), expected)


def test_arguments_are_not_changed() -> None:
    arguments = make([(2, 5, 6, 9)])
    before = copy.deepcopy(arguments)
    gradients(weighted_l2, arguments)
    for name in ("student", "teacher", "weights", "channel_weights"):
        assert torch.equal(arguments[name][0], before[name][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": [torch.zeros(1, 3, 4, 5)]}, "level 0: student is (1, 3, 4, 4), teacher (1, 3, 4, 5)"),
        ({"scale": torch.ones(2, 1)}, "scale is (2, 1) on cpu; expected (levels, batch) = (1, 1) on cpu"),
        (
            {"weights": [torch.ones(1, 4)]},
            "weights of level 0 are (1, 4); expected (B, pixels..) = (1, 4, 4)",
        ),
        ({"weights": torch.ones(1, 4)}, "weights are (1, 4); expected (B, pixels of all levels) = (1, 16)"),
        ({"weights": []}, "0 weights for 1 levels"),
        ({"weights": [torch.ones(1, 4, 4, requires_grad=True)]}, "weights require a gradient"),
        ({"channel_weights": [torch.ones(4)]}, "channel_weights of level 0 are (4,); expected (C,) = (3,)"),
        ({"channel_weights": []}, "0 channel_weights for 1 levels"),
    ],
)
def test_errors_say_what_was_expected(change: dict, message: str) -> None:
    arguments = {
        "student": [torch.zeros(1, 3, 4, 4)],
        "teacher": [torch.zeros(1, 3, 4, 4)],
        "scale": torch.ones(1, 1),
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        weighted_l2(**{**arguments, **change})


def test_levels_of_the_teacher_in_two_dtypes_are_refused() -> None:
    level = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match=re.escape("level 1 of the teacher is torch.float16, level 0")):
        weighted_l2([level, level], [level, level.half()], torch.ones(2, 1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("norm", [False, True], ids=["squared", "norm"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_matches_the_reference(dtype: torch.dtype, norm: bool) -> None:
    for size in SHAPES:
        arguments = make(SHAPES[size], dtype, torch.float32)
        on_device = {
            k: [t.cuda() for t in v] if isinstance(v, list) else v.cuda() for k, v in arguments.items()
        }
        loss, grads = gradients(weighted_l2, {**on_device, "norm": norm})
        again, others = gradients(weighted_l2, {**on_device, "norm": norm})
        assert torch.equal(loss, again)
        assert all(torch.equal(a, b) for a, b in zip(grads, others, strict=True))
        expected, references = gradients(weighted_l2_reference, {**double(arguments), "norm": norm})
        assert_close(loss.cpu(), expected, 3e-6)
        for grad, reference in zip(grads, references, strict=True):
            assert_close(grad.cpu(), reference, max(TOLERANCE[dtype], 3e-6))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_never_waits_for_the_device() -> None:
    student = torch.randn(2, 16, 20, 30, device="cuda", requires_grad=True)
    teacher, weights = torch.randn_like(student), torch.rand(2, 20, 30, device="cuda")
    scale = torch.ones(1, 2, device="cuda")
    weighted_l2([student], [teacher], scale, weights=[weights]).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        weighted_l2([student], [teacher], scale, weights=[weights]).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_cuda_graph_replays_a_step(dtype: torch.dtype) -> None:
    student = torch.randn(2, 16, 20, 30, device="cuda", dtype=dtype, requires_grad=True)
    teacher, weights = torch.randn_like(student), torch.rand(2, 20, 30, device="cuda")
    scale = torch.ones(1, 2, device="cuda")

    def step() -> Tensor:
        (grad,) = torch.autograd.grad(
            weighted_l2([student], [teacher], scale, weights=[weights]).sum(), student
        )
        return grad

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        student.copy_(torch.randn_like(student))
    graph.replay()
    assert torch.equal(captured, step())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_upstream_gradients() -> None:
    student = torch.randn(2, 16, 20, 30, device="cuda", requires_grad=True)
    loss = weighted_l2([student], [torch.zeros_like(student)], torch.ones(1, 2, device="cuda"))
    for upstream, kept in ((3.0, True), (1.0, True), (0.5, False)):
        factor = torch.full((1,), upstream, device="cuda")
        (grad,) = torch.autograd.grad(loss, student, factor, retain_graph=kept)
        torch.testing.assert_close(grad, 2 * upstream * student.detach())
