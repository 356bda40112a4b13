"""Class distances and the depth-guided weight."""

import math
import re

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

from bevkd2.ops import class_distance, depth_guidance


def test_l2_acts_on_probabilities_or_on_logits():
    student, teacher = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, -1.0]])
    expected = (torch.sigmoid(student) - torch.sigmoid(teacher)).square().sum(-1)
    torch.testing.assert_close(class_distance(student, teacher, "l2"), expected)
    assert class_distance(student, teacher, "l2_logits").tolist() == [10.0]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_is_torch_distributions(temperature):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    t, s = Bernoulli(logits=teacher / temperature), Bernoulli(logits=student / temperature)
    expected = temperature**2 * kl_divergence(t, s).sum(-1)
    torch.testing.assert_close(class_distance(student, teacher, "kl", temperature), expected)


@pytest.mark.parametrize("distance", ["l2", "l2_logits", "kl"])
def test_distance_is_zero_for_equals_and_differentiable_and_finite_far_out(distance):
    student = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 3, dtype=torch.float64)
    assert class_distance(student, student, distance).abs().max() < 1e-12
    assert torch.autograd.gradcheck(lambda s: class_distance(s, teacher, distance), student)
    extreme = class_distance(torch.tensor([[-200.0]]), torch.tensor([[200.0]]), distance)
    assert bool(torch.isfinite(extreme).all())


def test_guidance_is_equation_5():
    weight = depth_guidance(
        torch.tensor([10.0, 40.0]), torch.tensor([20.0, 40.0]), torch.tensor([25.0, 50.0]), torch.tensor(50.0)
    )
    expected = [(10 * 0.2 + 1) * math.exp(0.5), 1.0 * math.exp(1.0)]
    assert weight.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_paper_s_ablations_are_settings():
    student, teacher = torch.tensor([10.0]), torch.tensor([20.0])
    true, largest = torch.tensor([25.0]), torch.tensor(50.0)
    assert depth_guidance(None, None, true, largest, rho="off").tolist() == [1.0]
    assert depth_guidance(None, None, true, largest, rho="linear").tolist() == [1.5]
    assert depth_guidance(student, teacher, true, largest, rho="off").item() == pytest.approx(3.0)
    assert depth_guidance(
        student, teacher, true, largest, rho="off", slope=5.0, offset=2.0
    ).item() == pytest.approx(3.0)


def test_depths_beyond_the_limits_are_clipped():
    weight = depth_guidance(
        torch.tensor([-30.0, 1e6]), torch.tensor([1e6, -5.0]), torch.tensor([50.0, 50.0]), torch.tensor(50.0)
    )
    assert weight.tolist() == pytest.approx([11 * math.e] * 2, rel=1e-6)


def test_guidance_of_frozen_samples_is_the_offset_times_rho():
    """And of locations that are not counted 1; neither gives the student's depth a gradient, even if NaN."""
    student = torch.tensor([[10.0, 20.0], [10.0, float("nan")]], requires_grad=True)
    teacher, true = (
        torch.tensor([[20.0, 30.0], [20.0, 20.0]]),
        torch.tensor([[25.0, float("nan")], [50.0, 25.0]]),
    )
    weight = depth_guidance(
        student,
        teacher,
        true,
        torch.tensor(50.0),
        counted=torch.tensor([[True, False], [True, True]]),
        frozen=torch.tensor([False, True]),
        offset=1.5,
    )
    expected = [(10 * 0.2 + 1.5) * math.exp(0.5), 1.0, 1.5 * math.exp(1.0), 1.5 * math.exp(0.5)]
    assert weight.flatten().tolist() == pytest.approx(expected, rel=1e-6)
    (grad,) = torch.autograd.grad(weight.sum(), student)
    assert grad.flatten().tolist() == pytest.approx([-10 / 50 * math.exp(0.5), 0, 0, 0], rel=1e-6)


def test_guidance_gets_gradcheck_and_depths_beyond_the_limits_get_no_gradient():
    student = torch.tensor([[-5.0, 10.0, 49.0, 60.0]], dtype=torch.float64, requires_grad=True)
    teacher, true = torch.full((1, 4), 20.0).double(), torch.full((1, 4), 30.0).double()
    largest = torch.tensor(50.0)
    for rho in ("exp", "linear", "off"):
        assert torch.autograd.gradcheck(
            lambda depth, rho=rho: depth_guidance(depth, teacher, true, largest, rho=rho, slope=5.0), student
        )
    (grad,) = torch.autograd.grad(depth_guidance(student, teacher, true, largest).sum(), student)
    assert (grad != 0).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("rho", ["exp", "linear", "off"])
@pytest.mark.parametrize("with_depths", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.float16, torch.float64)], ids=str)
def test_gathered_locations_equal_the_elementwise_form(rho, with_depths, share, dtypes, monkeypatch):
    """Bit for bit, values and gradients; compiled and CUDA code compute every location."""
    generator = torch.Generator().manual_seed(0)
    student, teacher, true = (70 * torch.rand(3, 4, 20, 5, generator=generator) - 10).transpose(1, 2)
    student, true = student.to(dtypes[0]), true.to(dtypes[1])
    counted = torch.rand(20, 4, 5, generator=generator) < share
    frozen = torch.rand(20, generator=generator) < 0.3
    upstream = torch.rand(20, 4, 5, generator=generator)
    student[frozen], teacher[frozen] = float("nan"), float("nan")
    for depth in (student, teacher, true):
        depth[~counted] = float("nan")
    student.requires_grad_()
    results = []
    for elementwise in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda value=elementwise: value)
        depths = (student, teacher) if with_depths else (None, None)
        weight = depth_guidance(*depths, true, torch.tensor(50.0), counted=counted, frozen=frozen, rho=rho)
        assert bool((weight[~counted] == 1).all())
        results.append([weight.detach()])
        if with_depths:
            results[-1] += torch.autograd.grad(weight, student, upstream.to(weight.dtype))
    for gathered, elementwise in zip(*results, strict=True):
        assert gathered.dtype == elementwise.dtype
        assert torch.isfinite(gathered).all()
        assert torch.equal(gathered, elementwise)


def test_only_counted_locations_are_computed(monkeypatch):
    """The weight of a step's objects does not cost what one of all locations costs."""
    sizes, clamp = [], torch.Tensor.clamp
    monkeypatch.setattr(
        torch.Tensor, "clamp", lambda self, *limits: sizes.append(self.numel()) or clamp(self, *limits)
    )
    depths, counted = torch.rand(3, 2, 1000), torch.zeros(2, 1000, dtype=torch.bool)
    counted[1, [3, 500, 999]] = True
    depth_guidance(*depths, torch.tensor(1.0), counted=counted)
    assert sizes == [3, 3, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_depth": None}, "give both or neither"),
        (
            {"teacher_depth": torch.ones(2, 4)},
            "teacher_depth is (2, 4); expected true_depth's shape = (2, 3)",
        ),
        ({"max_depth": torch.ones(2)}, "max_depth is (2,); expected a scalar = ()"),
        ({"frozen": torch.zeros(3, dtype=torch.bool)}, "frozen is (3,); expected (B,) = (2,)"),
        ({"max_depth": torch.ones((), device="meta")}, "max_depth is on meta, true_depth on cpu"),
    ],
)
def test_depths_that_do_not_fit_are_named(changes, message):
    depths = {name: torch.ones(2, 3) for name in ("student_depth", "teacher_depth", "true_depth")}
    with pytest.raises(ValueError, match=re.escape(message)):
        depth_guidance(**(depths | {"max_depth": torch.ones(())} | changes))


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match="rho is 'cube'"):
        depth_guidance(None, None, torch.ones(1), torch.ones(()), rho="cube")
    with pytest.raises(ValueError, match="distance is 'l1'"):
        class_distance(torch.ones(1, 1), torch.ones(1, 1), "l1")
    with pytest.raises(ValueError, match="temperature is 0"):
        class_distance(torch.ones(1, 1), torch.ones(1, 1), "kl", 0)
