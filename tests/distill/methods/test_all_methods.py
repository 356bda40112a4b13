"""What must hold for every method, on every detector family that it runs on."""

from __future__ import annotations

import itertools

import pytest
import torch

from bevkd2.distill import DISTILL_REGISTRY
from tests.distill.methods.catalog import CASES, CATALOG, pair_of
from tests.distill.methods.harness import DETECTORS, distill_losses, make_batch

WRONG = [
    (entry, detector)
    for entry, detector in itertools.product(CATALOG, DETECTORS)
    if detector not in entry.detectors
]


def test_every_registered_method_is_in_the_catalog():
    own = {name for name, cls in DISTILL_REGISTRY if cls.__module__.startswith("bevkd2.")}
    assert own == {entry.method for entry in CATALOG}


@pytest.mark.parametrize(("entry", "detector"), CASES, ids=str)
def test_its_gradient_reaches_the_student_where_it_should_and_the_teacher_nowhere(entry, detector):
    model = pair_of(entry, detector)
    sum(distill_losses(model, make_batch(detector, *range(1, entry.images + 1))).values()).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    for part in entry.reaches:
        gradients = [p.grad for name, p in model.student.named_parameters() if name.startswith(part)]
        assert gradients, f"the student has no parameters {part}"
        assert any(g is not None and bool(g.abs().max() > 0) for g in gradients), part


@pytest.mark.parametrize(("entry", "detector"), [case for case in CASES if case[0].zero], ids=str)
def test_it_is_zero_for_a_student_that_is_the_teacher(entry, detector):
    model = pair_of(entry, detector, same=True)
    for adapter in getattr(model.methods[entry.method], "adapters", ()):
        make_identity(adapter)
    model.student.eval()  # batch statistics as the teacher's
    model.training = True
    losses = model(make_batch(detector, *range(1, entry.images + 1)))
    values = [value.item() for name, value in losses.items() if name.startswith("loss_distill_")]
    other = distill_losses(pair_of(entry, detector), make_batch(detector, *range(1, entry.images + 1)))
    assert values and max(map(abs, values)) <= 1e-6 * sum(value.item() for value in other.values())


@pytest.mark.parametrize(("entry", "detector"), [case for case in CASES if case[0].per_sample], ids=str)
def test_a_batch_of_two_is_the_mean_of_two_of_one(entry, detector):
    model = pair_of(entry, detector)
    model.eval()
    model.training = True
    both, first, second = (
        {name: value.item() for name, value in model(batch).items() if name.startswith("loss_distill_")}
        for batch in (make_batch(detector, 1, 2), make_batch(detector, 1), make_batch(detector, 2))
    )
    for name, value in both.items():
        assert value == pytest.approx((first[name] + second[name]) / 2, rel=1e-4), name


@pytest.mark.parametrize(("entry", "detector"), WRONG, ids=str)
def test_on_a_detector_that_lacks_what_it_reads_it_is_an_error_when_the_model_is_built(entry, detector):
    with pytest.raises(ValueError, match=r"DISTILL\."):
        pair_of(entry, detector)


def make_identity(adapter: torch.nn.Module) -> None:
    """Lets a convolution of an adapter return its input."""
    for module in adapter.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.dirac_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
