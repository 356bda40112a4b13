"""Training steps of every method, on every detector family that it runs on."""

from __future__ import annotations

import pytest

from tests.distill.methods.catalog import CASES, pair_of
from tests.distill.methods.harness import make_batch, train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("entry", "detector"), CASES, ids=str)
def test_its_own_loss_falls_in_twenty_steps(entry, detector):
    model = pair_of(entry, detector)
    history = train(model, make_batch(detector, *range(1, entry.images + 1)), steps=20, lr=entry.lr)
    assert all(value == value and abs(value) < float("inf") for value in history)
    assert min(history[-3:]) < 0.995 * history[0]
