"""Absolute means, alone and with a distance: values, gradients, memory layouts, dtypes and compilation."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bevkd2.ops import absolute_means, weighted_l2, weighted_l2_with_means
from tests.ops.references import absolute_means_reference

LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of which some are zero, which require a gradient."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    numbers[..., ::5] = 0
    return numbers.to(dtype).requires_grad_()


def compare(features: Tensor, view: Callable[[Tensor], Tensor] = lambda x: x) -> None:
    """Values and the gradient of both means, and of either, of a view of the features."""
    grad_tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}.get(features.dtype, 8e-3)
    wide = features.detach().double().requires_grad_()
    for power in (1, 2):
        ours = absolute_means(view(features), power=power)
        theirs = absolute_means_reference(view(wide), power=power)
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        tolerance = 1e-13 if dtype == torch.float64 else 2e-6
        upstream = [torch.randn(means.shape, dtype=dtype) for means in theirs]
        for mean, expected in zip(ours, theirs, strict=True):
            assert mean.dtype == dtype
            torch.testing.assert_close(mean.double(), expected, rtol=tolerance, atol=0, equal_nan=True)
        for used in ([0, 1], [0], [1]):
            arguments = [[group[i] for i in used] for group in (ours, upstream)]
            (actual,) = torch.autograd.grad(arguments[0], features, arguments[1], retain_graph=True)
            (expected,) = torch.autograd.grad(
                [theirs[i] for i in used], wide, [upstream[i].double() for i in used], retain_graph=True
            )
            assert actual.dtype == features.dtype
            largest = expected.abs().max().item() if expected.numel() else 0
            torch.testing.assert_close(actual.double(), expected, rtol=0, atol=grad_tolerance * largest)


@layouts
@dtypes
# tails of eight and several tiles; less than eight; one pixel
@pytest.mark.parametrize("shape", [(2, 70, 9, 251), (3, 5, 1, 3), (1, 8, 1, 1)])
def test_equals_the_reference(layout: torch.memory_format, dtype: torch.dtype, shape: tuple) -> None:
    features = normal(*shape, dtype=dtype).detach().to(memory_format=layout)
    compare(features.requires_grad_())
    loss = absolute_means(features).pixels.sum()
    assert torch.autograd.grad(loss, features)[0].stride() == features.stride()


@pytest.mark.parametrize("shape", [(0, 3, 2, 4), (2, 0, 2, 4), (2, 3, 0, 4)])
def test_means_of_nothing_are_those_of_torch(shape: tuple) -> None:
    compare(normal(*shape))


@pytest.mark.parametrize("kind", ["every second column", "expanded", "sliced channels", "transposed", "flat"])
def test_any_strides_are_read(kind: str) -> None:
    view = {
        "every second column": lambda x: x[..., ::2],
        "expanded": lambda x: x[:, :, :, :1].expand(-1, -1, -1, 5),
        "sliced channels": lambda x: x[:, 1::2],
        "transposed": lambda x: x.transpose(1, 3),
        "flat": lambda x: x.flatten(2),
    }[kind]
    compare(normal(2, 6, 8, 10), view)


@pytest.mark.parametrize("power", [1, 2])
def test_gradcheck(power: int) -> None:
    features = torch.randn(2, 3, 2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tuple(absolute_means(x, power=power)), (features,))


@layouts
def test_results_are_bitwise_equal_for_any_number_of_threads(layout: torch.memory_format) -> None:
    features = normal(2, 130, 40, 60).detach().to(memory_format=layout).requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            means = absolute_means(features)
            loss = sum(mean.square().sum() for mean in means)
            results.append((*means, *torch.autograd.grad(loss, features)))
    finally:
        torch.set_num_threads(before)
    for tensors in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(tensors, results[0], strict=True))


@layouts
def test_opcheck(layout: torch.memory_format) -> None:
    features = normal(2, 3, 4, 5).detach().to(memory_format=layout).flatten(2)
    pixels, channels = torch.ops.bevkd2.absolute_means(features, 2)
    torch.library.opcheck(torch.ops.bevkd2.absolute_means, (features.clone().requires_grad_(), 2))
    for grads in ((pixels, channels), (None, channels)):
        torch.library.opcheck(torch.ops.bevkd2.absolute_means_backward, (*grads, features, 2))
        torch.library.opcheck(
            torch.ops.bevkd2.add_absolute_means_gradient_, (features.clone(), *grads, features, 2)
        )


def test_compiles_in_one_graph_with_dynamic_shapes() -> None:
    def loss(features: Tensor, teacher: Tensor) -> Tensor:
        found = weighted_l2_with_means(features, teacher, torch.ones(2))
        return found.distance + found.pixels.square().sum() + absolute_means(features).channels.square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for width in (7, 10):
        features, teacher = normal(2, 3, 5, width), normal(2, 3, 5, width, seed=1).detach()
        ours, expected = compiled(features, teacher), loss(features, teacher)
        torch.testing.assert_close(ours, expected)
        grads = [torch.autograd.grad(value, features)[0] for value in (ours, expected)]
        torch.testing.assert_close(*grads)


def with_means(student: Tensor, teacher: Tensor, used: str) -> Tensor:
    """A loss of what weighted_l2_with_means returns: a part of "distance pixels channels"."""
    found = weighted_l2_with_means(
        student,
        teacher,
        torch.tensor([0.5, 2.0]),
        weights=teacher[:, 0].abs(),
        channel_weights=teacher[:, :, 0, 0].square(),
        power=2,
    )
    return _loss(found.distance, found.pixels, found.channels, used)


def with_means_reference(student: Tensor, teacher: Tensor, used: str) -> Tensor:
    """The same in plain torch, in float64."""
    student, teacher = student.double(), teacher.double()
    weights = teacher[:, :1].abs() * teacher[:, :, :1, :1].square()
    distances = (weights * (student - teacher).square()).sum((1, 2, 3))
    return _loss(
        distances @ distances.new_tensor([0.5, 2.0]), *absolute_means_reference(student, power=2), used
    )


def _loss(distance: Tensor, pixels: Tensor, channels: Tensor, used: str) -> Tensor:
    terms = {"distance": 3 * distance, "pixels": pixels.sin().sum(), "channels": channels.cos().sum()}
    return sum((terms[name] for name in used.split()), distance.new_zeros(()))


@layouts
@dtypes
@pytest.mark.parametrize("used", ["distance pixels channels", "distance", "pixels", "distance channels"])
def test_distance_with_means_is_the_reference(
    layout: torch.memory_format, dtype: torch.dtype, used: str
) -> None:
    student, teacher = (normal(2, 7, 5, 9, seed=seed, dtype=dtype).detach() for seed in (0, 1))
    student = student.to(memory_format=layout).requires_grad_()
    ours, expected = (form(student, teacher, used) for form in (with_means, with_means_reference))
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=0)
    grads = [torch.autograd.grad(loss, student)[0] for loss in (ours, expected)]
    assert grads[0].stride() == student.stride()
    relative = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 8e-3)
    torch.testing.assert_close(*grads, rtol=0, atol=relative * grads[1].abs().max().item())


def test_the_distance_is_that_of_weighted_l2_and_its_entries_of_weight_zero_may_be_nan() -> None:
    student, teacher = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1).detach()
    with torch.no_grad():
        student[:, :, 0, 0] = float("nan")
    weights, scale = torch.ones(2, 4, 5), torch.ones(2)
    weights[:, 0, 0] = 0
    ours = weighted_l2_with_means(student, teacher, scale, weights=weights).distance
    expected = weighted_l2([student], [teacher], scale[None], weights=[weights])[0]
    assert torch.equal(ours, expected)
    assert torch.equal(*(torch.autograd.grad(loss, student)[0] for loss in (ours, expected)))


def test_gradcheck_and_opcheck_of_the_distance_with_means() -> None:
    student, teacher = (torch.randn(2, 3, 2, 5, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda s: tuple(weighted_l2_with_means(s, teacher, torch.ones(2))), (student.requires_grad_(),)
    )
    empty, scale = torch.zeros(0, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    maps = student.detach().flatten(2).requires_grad_(), teacher.flatten(2)
    torch.library.opcheck(torch.ops.bevkd2.weighted_l2_with_means, (*maps, empty, empty, scale, 1))


def test_backward_may_run_again_on_a_retained_graph() -> None:
    student, teacher = normal(2, 7, 5, 9), normal(2, 7, 5, 9, seed=1).detach()
    loss = with_means(student, teacher, "distance pixels channels")
    once = torch.autograd.grad(loss, student, retain_graph=True)[0].clone()
    torch.testing.assert_close(torch.autograd.grad(2 * loss, student)[0], 2 * once)


def test_second_derivatives_and_forward_mode_are_refused() -> None:
    student, teacher = normal(2, 7, 5, 9), normal(2, 7, 5, 9, seed=1).detach()
    with pytest.raises(RuntimeError, match="absolute_means has no second derivative"):
        torch.autograd.grad(absolute_means(student).pixels.sum(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="weighted_l2_with_means has no second derivative"):
        torch.autograd.grad(with_means(student, teacher, "distance"), student, create_graph=True)
    with pytest.raises(RuntimeError, match="absolute_means has no forward-mode derivative"):
        torch.func.jvp(lambda x: absolute_means(x).pixels, (teacher,), (teacher,))


def test_errors_name_what_was_found() -> None:
    features = torch.zeros(2, 3, 4)
    for call, message in (
        (lambda: absolute_means(features, power=3), "power is 3; expected 1 or 2"),
        (lambda: absolute_means(features[0]), "features is (3, 4); expected (B, C, pixels..)"),
        (lambda: absolute_means(features.long()), "features is torch.int64; expected float64, float32"),
        (
            lambda: weighted_l2_with_means(features[0], features[0], torch.ones(3)),
            "student is (3, 4); expected (B, C, pixels..)",
        ),
        (
            lambda: weighted_l2_with_means(features, features, torch.ones(3)),
            "scale is (1, 3) on cpu; expected (levels, batch) = (1, 2)",
        ),
        (
            lambda: weighted_l2_with_means(features, features, torch.ones(2), power=0),
            "weighted_l2_with_means: power is 0; expected 1 or 2",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


def test_a_gradient_of_another_kind_is_not_added_to() -> None:
    features = torch.zeros(2, 3, 4)
    for gradient in (torch.zeros(2, 3, 5), features.half(), torch.zeros(2, 3, 8)[..., ::2]):
        with pytest.raises(
            RuntimeError, match="the gradient must be of the features' shape, dtype and device"
        ):
            torch.ops.bevkd2.add_absolute_means_gradient_(gradient, None, torch.zeros(2, 3), features, 1)
