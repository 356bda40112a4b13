"""Losses of every method under autocast, on every detector family that it runs on."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.distill.methods.catalog import CASES, pair_of
from tests.distill.methods.harness import distill_losses, make_batch

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("entry", "detector"), CASES, ids=str)
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
