"""Training steps of every method, on every detector family that it runs on."""

from __future__ import annotations

import pytest

from tests.distill.methods.catalog import CASES, pair_of
from tests.distill.methods.harness import make_batch, train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("entry", "detector"), CASES, ids=str)
def test_its_own_loss_falls_in_twenty_steps(entry, detector):
    """Ends once three losses in a row are 5 % below the first: more than what is asked at the end."""
    model = pair_of(entry, detector)
    batch = make_batch(detector, *range(1, entry.images + 1))
    history = train(model, batch, steps=20, lr=entry.lr, enough=0.95)
    assert all(value == value and abs(value) < float("inf") for value in history)
    assert min(history[-3:]) < 0.995 * history[0]
