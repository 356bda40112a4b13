"""Weighted feature imitation: Eq. 4, several levels in one call, and memory."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bevkd2.ops import feature_l2
from tests.ops.references import feature_l2_reference

SHAPES = [(2, 6, 9, 11), (2, 3, 5, 4), (2, 8, 1, 2)]


def make(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """Returns student, teacher, weights and counted cells of three levels."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES] for _ in range(2)
    )
    weights = [torch.rand(shape[0], *shape[2:], generator=generator) for shape in SHAPES]
    return student, teacher, weights, torch.tensor([[80.0, 99.0], [20.0, 3.0], [0.0, 2.0]])


def test_loss_is_equation_4():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(2, 3, 4, 5, generator=generator),
        torch.randn(2, 3, 4, 5, generator=generator),
    )
    weights = torch.rand(2, 4, 5, generator=generator)
    expected = (
        sum(
            sum(
                weights[b, y, x].item() * (student[b, c, y, x] - teacher[b, c, y, x]).item() ** 2
                for c in range(3)
                for y in range(4)
                for x in range(5)
            )
            / (4 * 5 * 3)
            for b in range(2)
        )
        / 2
    )
    assert feature_l2(student, teacher, weights).item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(feature_l2(student, teacher), (student - teacher).square().mean())


def test_cells_of_weight_zero_are_ignored_even_if_nan():
    student = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    teacher[..., 2] = float("nan")
    weights = torch.ones(1, 3, 3, dtype=torch.float64)
    weights[..., 2] = 0
    assert torch.autograd.gradcheck(lambda s: feature_l2(s, teacher, weights, torch.tensor([6])), student)
    feature_l2(student, teacher, weights).backward()
    assert bool((student.grad[..., 2] == 0).all()) and bool((student.grad[..., :2] != 0).all())


def test_half_precision_is_computed_in_float32():
    student, teacher = torch.full((1, 1, 64, 64), 300.0).half(), torch.zeros(1, 1, 64, 64)
    loss = feature_l2(student, teacher)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(90_000)


def test_errors_name_the_shapes_found():
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 3\), teacher \(1, 4, 3, 3\)"):
        feature_l2(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3))
    with pytest.raises(ValueError, match=r"weights of level 0 are \(3, 3\)"):
        feature_l2(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3), torch.zeros(3, 3))


def test_levels_in_one_call_equal_separate_calls() -> None:
    student, teacher, weights, cells = make()
    losses = feature_l2(student, teacher, weights, cells)
    flat = feature_l2(student, teacher, torch.cat([w.flatten(1) for w in weights], 1), cells)
    assert torch.equal(losses, flat)
    for level, loss in enumerate(losses):
        arguments = student[level], teacher[level], weights[level], cells[level]
        torch.testing.assert_close(loss, feature_l2(*arguments))
        torch.testing.assert_close(loss, feature_l2_reference(*arguments))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_match_the_reference(dtype: torch.dtype, layout: torch.memory_format) -> None:
    student, teacher, weights, _ = make(dtype)
    leaf = student[0].to(memory_format=layout, copy=True).requires_grad_()
    twin = student[0].double().requires_grad_()
    feature_l2(leaf, teacher[0].float(), weights[0], loss_weight=0.25).backward()
    (0.25 * feature_l2_reference(twin, teacher[0].double(), weights[0])).backward()
    assert leaf.grad.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(leaf.grad.double(), twin.grad, rtol=tolerance, atol=1e-7)


def test_channel_weights_match_the_reference() -> None:
    student, teacher, weights, _ = make()
    channels = [torch.rand(6), None, torch.rand(2, 8)]
    losses = feature_l2(student, teacher, weights, channel_weights=channels)
    for level, (s, t, w, c) in enumerate(zip(student, teacher, weights, channels, strict=True)):
        root = torch.ones(s.shape[:2]) if c is None else c.expand(s.shape[:2]).sqrt()
        expected = feature_l2_reference(s * root[..., None, None], t * root[..., None, None], w)
        torch.testing.assert_close(losses[level], expected)
    torch.testing.assert_close(
        losses[0], feature_l2(student[0], teacher[0], weights[0], channel_weights=channels[0])
    )


def test_compiles_in_one_graph_with_dynamic_shapes() -> None:
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def loss(student: list[Tensor], teacher: list[Tensor], weights: Tensor, cells: Tensor) -> Tensor:
        return feature_l2(student, teacher, weights, cells).mean()

    student, teacher, weights, cells = make()
    flat = torch.cat([w.flatten(1) for w in weights], 1)
    leaves = [s.requires_grad_() for s in student]
    compiled = torch.autograd.grad(loss(student, teacher, flat, cells), leaves)
    eager = torch.autograd.grad(feature_l2(student, teacher, flat, cells).mean(), leaves)
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a, b)


def allocated(step: Callable[[], object]) -> int:
    """Returns the bytes that torch allocates on the CPU while a step runs, freed or not."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    events = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    return sum(e.nbytes() for e in events if e.name() == "[memory]" and e.nbytes() > 0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_step_allocates_one_tensor_of_student_size(layout: torch.memory_format) -> None:
    student = torch.randn(2, 64, 60, 50).to(memory_format=layout).requires_grad_()
    teacher = torch.randn(2, 64, 60, 50).to(memory_format=layout)
    weights = torch.rand(2, 60, 50)
    size = student.numel() * 4
    assert size <= allocated(lambda: feature_l2(student, teacher, weights).backward()) < 1.05 * size
    student.grad = None
    with torch.no_grad():
        assert allocated(lambda: feature_l2(student, teacher, weights)) < 0.05 * size


def test_cells_of_another_shape_are_refused() -> None:
    student, teacher, _, cells = make()
    with pytest.raises(ValueError, match=re.escape("cells are (2, 2) on cpu; expected (levels, B) = (3, 2)")):
        feature_l2(student, teacher, None, cells[:2])
