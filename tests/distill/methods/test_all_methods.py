"""What must hold for every method, on every detector family that it runs on."""

from __future__ import annotations

import itertools

import pytest
import torch

from bevkd2.distill import DISTILL_REGISTRY
from tests.distill.methods.catalog import CATALOG, Entry
from tests.distill.methods.harness import (
    DETECTORS,
    build_pair,
    distill_losses,
    make_batch,
    train,
)

CASES = [(entry, detector) for entry in CATALOG for detector in entry.detectors]
WRONG = [
    (entry, detector)
    for entry, detector in itertools.product(CATALOG, DETECTORS)
    if detector not in entry.detectors
]


def identify(value: object) -> str:
    return str(value)


def pair_of(entry: Entry, detector: str, same: bool = False):
    return build_pair(
        detector,
        entry.method,
        student_width=entry.student_width,
        same=same,
        options=entry.options,
        weight=entry.weight,
        **entry.settings,
    )


def test_every_registered_method_is_in_the_catalog():
    own = {name for name, cls in DISTILL_REGISTRY if cls.__module__.startswith("bevkd2.")}
    assert own == {entry.method for entry in CATALOG}


@pytest.mark.parametrize(("entry", "detector"), CASES, ids=identify)
def test_its_own_loss_falls_in_eight_steps(entry, detector):
    model = pair_of(entry, detector)
    history = train(model, make_batch(detector, *range(1, entry.images + 1)), steps=8, lr=entry.lr)
    assert all(value == value and abs(value) < float("inf") for value in history)
    assert min(history[-3:]) < 0.995 * history[0]


@pytest.mark.parametrize(("entry", "detector"), CASES, ids=identify)
def test_its_gradient_reaches_the_student_where_it_should_and_the_teacher_nowhere(entry, detector):
    model = pair_of(entry, detector)
    sum(distill_losses(model, make_batch(detector, *range(1, entry.images + 1))).values()).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    for part in entry.reaches:
        gradients = [p.grad for name, p in model.student.named_parameters() if name.startswith(part)]
        assert gradients, f"the student has no parameters {part}"
        assert any(g is not None and bool(g.abs().max() > 0) for g in gradients), part


@pytest.mark.parametrize(("entry", "detector"), CASES, ids=identify)
def test_under_float16_autocast_large_features_give_nearly_the_same_loss(entry, detector):
    """Squares of features of a few hundred are beyond float16, and so is the sum of a few thousand."""

    def run(autocast):
        model = pair_of(entry, detector)
        for name, parameter in itertools.chain.from_iterable(
            d.named_parameters() for d in (model.student, *model.teachers)
        ):
            if name.startswith("neck.") and ".output_convs." in name:
                parameter.data *= 100
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            loss = sum(distill_losses(model, batch).values())
        assert loss.dtype == torch.float32
        (loss / loss.detach().clamp(min=1)).backward()  # as a loss scale would be adjusted to large losses
        return loss.item(), [p.grad for p in model.parameters() if p.grad is not None]

    batch = make_batch(detector, *range(1, entry.images + 1))
    expected, _ = run(False)
    found, gradients = run(True)
    assert found == pytest.approx(expected, rel=0.06)  # the rounding of the detectors
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(("entry", "detector"), [case for case in CASES if case[0].zero], ids=identify)
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


@pytest.mark.parametrize(("entry", "detector"), [case for case in CASES if case[0].per_sample], ids=identify)
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


@pytest.mark.parametrize(("entry", "detector"), WRONG, ids=identify)
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
