"""The compiled prediction loss: values, gradients of logits and depths, dtypes, and autograd features."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bevkd2.ops import Distance, class_distance, depth_guidance, logit_distance, prediction_loss
from tests.ops.references import prediction_loss_reference

B, Q = 2, 41
DISTANCES = [("l2", 1.0), ("l2_logits", 1.0), ("kl", 1.0), ("kl", 2.5), ("softmax_kl", 4.0)]
each_distance = pytest.mark.parametrize(("distance", "temperature"), DISTANCES)


@dataclasses.dataclass
class Case:
    student: Tensor
    teacher: Tensor
    objects: Tensor
    depths: dict[str, Any]
    weights: Tensor

    def guidance(self) -> Tensor:
        """D of the objects' locations that have a weight."""
        return depth_guidance(**self.depths, counted=self.objects & (self.weights != 0))

    def arguments(self) -> tuple:
        return self.student, self.teacher, self.objects, self.guidance(), self.weights

    def inputs(self) -> list[Tensor]:
        """The tensors that get a gradient."""
        return [self.student, self.depths["student_depth"]]

    def double(self) -> "Case":
        """The same in float64, detached."""
        depths = {
            key: value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value
            for key, value in self.depths.items()
        }
        depths["student_depth"].requires_grad_()
        return Case(
            self.student.detach().double().requires_grad_(),
            self.teacher.double(),
            self.objects,
            depths,
            self.weights.double(),
        )


def make(classes: int = 10, locations: int = Q, scale: float = 3.0) -> Case:
    """Depths beyond the largest and below zero, a sample that is frozen, locations of weight 0."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    student, teacher = scale * torch.randn(2, B, locations, classes, generator=generator)
    depths = {
        "true_depth": 55 * uniform(B, locations),
        "max_depth": torch.tensor(50.0),
        "student_depth": (70 * uniform(B, locations) - 10).requires_grad_(),
        "teacher_depth": 70 * uniform(B, locations) - 10,
        "frozen": torch.tensor([False, True]),
    }
    weights = uniform(B, locations) * (uniform(B, locations) < 0.7)
    return Case(student.requires_grad_(), teacher, uniform(B, locations) < 0.3, depths, weights)


def gradients(losses: tuple, case: Case, upstream: tuple[float, float] = (1.0, 1.0)) -> list[Tensor]:
    loss = upstream[0] * losses[0] + upstream[1] * losses[1]
    return list(torch.autograd.grad(loss, case.inputs()))


@each_distance
@pytest.mark.parametrize("classes", [1, 10, 37])
@pytest.mark.parametrize("upstream", [(1.0, 1.0), (0.5, -3.0)])
def test_equals_the_reference(
    distance: Distance, temperature: float, classes: int, upstream: tuple[float, float]
) -> None:
    case, wide = make(classes), make(classes).double()
    options = {
        "distance": distance, "temperature": temperature, "object_weight": 2.0, "background_weight": 0.7
    }  # fmt: skip
    ours = prediction_loss(*case.arguments(), **options)
    expected = prediction_loss_reference(*wide.arguments(), **options)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=2e-6, atol=1e-7)
    for one, other in zip(gradients(ours, case, upstream), gradients(expected, wide, upstream), strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=1e-6)


def test_the_guidance_weights_objects_alone_and_not_their_total() -> None:
    case = make()
    guidance = torch.rand(B, Q, requires_grad=True)
    ours, expected = (
        op(case.student, case.teacher, case.objects, guidance, case.weights, distance="l2")
        for op in (prediction_loss, prediction_loss_reference)
    )
    torch.testing.assert_close(ours, expected)
    grad, expected_grad = (torch.autograd.grad(sum(losses), guidance)[0] for losses in (ours, expected))
    torch.testing.assert_close(grad, expected_grad)
    assert not grad[~case.objects | (case.weights == 0)].any()


@each_distance
def test_gradcheck_of_logits_and_depths(distance: Distance, temperature: float) -> None:
    case = make(3, 6, 1.0).double()

    def loss(student: Tensor, depth: Tensor) -> Tensor:
        other = dataclasses.replace(case, student=student, depths=case.depths | {"student_depth": depth})
        losses = prediction_loss(*other.arguments(), distance=distance, temperature=temperature)
        return torch.stack(losses)

    assert case.objects.any()
    assert torch.autograd.gradcheck(loss, tuple(case.inputs()))


@each_distance
def test_logit_distance_is_the_weighted_mean(distance: Distance, temperature: float) -> None:
    case = make()
    options = {"distance": distance, "temperature": temperature}
    each = class_distance(case.student, case.teacher, distance, temperature)
    torch.testing.assert_close(logit_distance(case.student, case.teacher, **options), each.mean())
    ours = logit_distance(case.student, case.teacher, case.weights, loss_weight=0.3, **options)
    expected = 0.3 * (each * case.weights).sum() / case.weights.sum()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(-2 * loss, case.student)[0] for loss in (ours, expected)), rtol=1e-5, atol=1e-7
    )


@each_distance
@pytest.mark.parametrize("far", [60.0, 1e4])
def test_extreme_logits_stay_finite_and_exact(distance: Distance, temperature: float, far: float) -> None:
    student = torch.tensor([[[far, -far], [far, far], [-far, 0.5], [0.25, far], [far, 0.99 * far]]])
    teacher = torch.tensor([[[-far, far], [far, far], [0.5, -far], [far, 0.5], [0.99 * far, far]]])
    ours, wide = student.clone().requires_grad_(), student.double().requires_grad_()
    loss = logit_distance(ours, teacher, distance=distance, temperature=temperature)
    expected = class_distance(wide, teacher, distance, temperature).mean()
    torch.testing.assert_close(loss, expected.float(), rtol=1e-6, atol=1e-7)
    grad = torch.autograd.grad(loss, ours)[0]
    torch.testing.assert_close(grad, torch.autograd.grad(expected, wide)[0].float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("distance", ["kl", "softmax_kl"])
def test_small_divergences_keep_their_digits(distance: Distance) -> None:
    """Where student and teacher nearly agree, also at logits far from zero."""
    teacher = torch.linspace(-20, 20, 400).view(1, 100, 4)
    student = teacher + 0.05 * torch.randn(teacher.shape, generator=torch.Generator().manual_seed(0))
    expected = class_distance(student.double(), teacher.double(), distance)
    torch.testing.assert_close(
        logit_distance(student, teacher, distance=distance), expected.mean().float(), rtol=2e-4, atol=0
    )


def test_bernoulli_kl_is_as_accurate_as_float32_allows() -> None:
    """log1p and exp of the vector kernels against float64, pair by pair."""
    grid = torch.linspace(-30, 30, 241)
    student, teacher = torch.meshgrid(grid, grid, indexing="ij")
    for s, t in zip(student.flatten()[::61], teacher.flatten()[::61], strict=True):
        if abs(s - t) < 0.5:
            continue
        ours = logit_distance(s.view(1, 1, 1), t.view(1, 1, 1), distance="kl")
        expected = class_distance(s.double().view(1, 1, 1), t.double().view(1, 1, 1), "kl").mean()
        assert ours.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float64),
    ],
    ids=str,
)
def test_dtypes_may_differ(ours: torch.dtype, theirs: torch.dtype) -> None:
    case = make()
    case.student, case.teacher = case.student.detach().to(ours).requires_grad_(), case.teacher.to(theirs)
    wide = case.double()
    with torch.autocast("cpu", torch.bfloat16):
        losses = prediction_loss(*case.arguments(), distance="kl")
    assert losses.objects.dtype == (torch.float64 if theirs == torch.float64 else torch.float32)
    expected = prediction_loss_reference(*wide.arguments(), distance="kl")
    torch.testing.assert_close(losses.objects.double(), expected.objects, rtol=1e-5, atol=0)
    logits, depth = gradients(losses, case, (2.0, 3.0))
    expected_logits, expected_depth = gradients(expected, wide, (2.0, 3.0))
    tolerance = {"rtol": 2**-6, "atol": 1e-6} if ours != torch.float32 else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(logits, expected_logits.to(ours), **tolerance)
    torch.testing.assert_close(depth, expected_depth.float(), rtol=1e-4, atol=1e-6)


def test_float16_gradients_fold_the_upstream_gradient_in() -> None:
    """A loss scaler's 65536 on a 0.01-weighted mean whose own gradient float16 cannot hold."""
    student, teacher = (torch.randn(1, 30000, 10).half() for _ in range(2))
    student.requires_grad_()
    loss = logit_distance(student, teacher, distance="l2", loss_weight=0.01)
    scaled = torch.autograd.grad(65536 * loss, student)[0]
    assert scaled.count_nonzero() > 0.99 * scaled.numel()
    wide = student.detach().float().requires_grad_()
    expected = 655.36 * class_distance(wide, teacher, "l2").mean()
    torch.testing.assert_close(scaled.float(), torch.autograd.grad(expected, wide)[0], rtol=2e-3, atol=6e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_backward_may_run_again_on_a_retained_graph(dtype: torch.dtype) -> None:
    case = make()
    student = case.student.detach().to(dtype).requires_grad_()
    loss = sum(prediction_loss(student, *case.arguments()[1:], distance="kl"))
    inputs = [student, case.depths["student_depth"]]
    given = torch.autograd.grad(loss, inputs, retain_graph=True)
    once = [grad.clone() for grad in given]
    for grad in given:
        grad.fill_(7)  # the caller's own
    twice = torch.autograd.grad(2 * loss, inputs, retain_graph=True)
    again = torch.autograd.grad(loss, inputs)
    for first, double, second in zip(once, twice, again, strict=True):
        torch.testing.assert_close(double, 2 * first)
        assert torch.equal(first, second)


def test_detached_guidance_and_detached_logits_get_no_gradient() -> None:
    case = make()
    student, teacher, objects, guidance, _ = case.arguments()
    losses = prediction_loss(student, teacher, objects, guidance.detach(), distance="l2")
    torch.autograd.grad(losses.objects, student)
    losses = prediction_loss(student.detach(), teacher, objects, guidance, distance="l2")
    assert torch.autograd.grad(losses.objects, case.depths["student_depth"])[0].any()
    assert not prediction_loss(student.detach(), teacher, objects, distance="l2").objects.requires_grad


def test_no_gradient_is_computed_unless_requested() -> None:
    case = make()
    numbers = (0, 1.0, 1.0, 1.0)
    with torch.no_grad():
        for need in (False, True):
            _, logits, guidance = torch.ops.bevkd2.prediction_loss(
                case.student, case.teacher, None, None, None, *numbers, need, need
            )
            assert logits.shape == ((B, Q, 10) if need else (0,))
            assert guidance.shape == (0,)
        quiet = prediction_loss(*case.arguments(), distance="kl")
    loud = prediction_loss(*case.arguments(), distance="kl")
    assert torch.equal(quiet.objects, loud.objects)
    assert torch.equal(quiet.background, loud.background)


def test_locations_of_weight_zero_may_hold_nan() -> None:
    case = make()
    expected = prediction_loss(*case.arguments(), distance="kl")
    ignored = case.weights == 0
    with torch.no_grad():
        for tensor in (case.student, case.teacher):
            tensor[ignored] = float("nan")
        for name in ("student_depth", "teacher_depth", "true_depth"):
            case.depths[name][ignored | ~case.objects] = float("nan")
    losses = prediction_loss(*case.arguments(), distance="kl")
    assert torch.equal(losses.objects, expected.objects)
    assert torch.equal(losses.background, expected.background)
    for grad in gradients(losses, case, (2.0, 3.0)):
        assert torch.isfinite(grad).all()
        assert not grad[ignored].any()


def test_no_object_no_background_no_location_no_class() -> None:
    case = make()
    nothing = torch.zeros_like(case.objects)
    depths = case.depths | {"max_depth": torch.tensor(0.0)}  # no annotated object: 0 / 0
    guidance = depth_guidance(**depths, counted=nothing)
    losses = prediction_loss(case.student, case.teacher, nothing, guidance, distance="l2")
    assert losses.objects.item() == 0
    torch.testing.assert_close(losses.background, class_distance(case.student, case.teacher, "l2").mean())
    logits, depth = gradients(losses, case)
    assert torch.isfinite(logits).all()
    assert not depth.any()
    losses = prediction_loss(case.student, case.teacher, ~nothing, distance="l2")
    assert losses.background.item() == 0
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        empty = torch.zeros(shape, requires_grad=True)
        for distance, _ in DISTANCES:
            loss = logit_distance(empty, empty.detach(), distance=distance)
            assert loss.item() == 0
            assert torch.autograd.grad(loss, empty)[0].shape == shape


def test_other_strides_are_accepted() -> None:
    case = make()
    turned = case.student.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    ours = prediction_loss(turned, *case.arguments()[1:], distance="l2")
    expected = prediction_loss(*case.arguments(), distance="l2")
    assert torch.equal(ours.objects, expected.objects)
    assert torch.equal(
        torch.autograd.grad(ours.background, turned)[0],
        torch.autograd.grad(expected.background, case.student)[0],
    )


def test_results_are_bitwise_equal_for_any_number_of_threads() -> None:
    case = make(locations=9000)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            losses = prediction_loss(*case.arguments(), distance="kl")
            results.append([*losses, *gradients(losses, case)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck() -> None:
    case = make(3, 5)
    guidance = case.guidance().detach().requires_grad_()
    numbers = (2, 1.5, 2.0, 0.5)
    full = (case.student, case.teacher, case.weights, case.objects, guidance, *numbers, True, True)
    torch.library.opcheck(torch.ops.bevkd2.prediction_loss, full)
    bare = (case.student.half(), case.teacher, None, None, None, *numbers, False, False)
    torch.library.opcheck(torch.ops.bevkd2.prediction_loss, bare)
    constants = [a.detach() if isinstance(a, Tensor) else a for a in full]
    torch.library.opcheck(torch.ops.bevkd2.prediction_loss_backward, (torch.ones(2), *constants))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_compile(dtype: torch.dtype) -> None:
    def loss(student: Tensor, case: Case) -> Tensor:
        losses = prediction_loss(student, *case.arguments()[1:], distance="kl")
        return 3 * losses.objects + losses.background

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for locations in (41, 50):
        case = make(locations=locations)
        student = case.student.detach().to(dtype).requires_grad_()
        ours, expected = compiled(student, case), loss(student, case)
        torch.testing.assert_close(ours, expected)
        inputs = [student, case.depths["student_depth"]]
        for one, other in zip(
            torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs), strict=True
        ):
            torch.testing.assert_close(one, other)


def test_second_derivatives_are_refused() -> None:
    case = make()
    losses = prediction_loss(*case.arguments(), distance="l2")
    with pytest.raises(RuntimeError, match="prediction_loss has no second derivative"):
        torch.autograd.grad(losses.objects, case.student, create_graph=True)


def call(**changes: object) -> Callable:
    case = make(3, 4)
    arguments = {
        "student": case.student, "teacher": case.teacher, "objects": case.objects,
        "guidance": case.guidance(), "distance": "l2",
    }  # fmt: skip
    return lambda: prediction_loss(**(arguments | changes))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (call(distance="l1"), "distance is 'l1'"),
        (call(temperature=0.0), "temperature is 0.0"),
        (call(teacher=torch.zeros(2, 4, 5)), "student is (2, 4, 3), teacher (2, 4, 5)"),
        (call(objects=torch.zeros(2, 5, dtype=torch.bool)), "objects is (2, 5); expected (B, Q) = (2, 4)"),
        (call(objects=torch.zeros(2, 4)), "objects are torch.float32; expected bool"),
        (call(weights=torch.zeros(2, 5)), "weights is (2, 5)"),
        (call(guidance=torch.zeros(2)), "guidance is (2,); expected (B, Q) = (2, 4)"),
    ],
)
def test_errors_name_what_was_found(wrong: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        wrong()
