"""Weights that rise and fall during training."""

import pytest

from bevkd2.distill import Progress, Schedule
from tests.distill.methods.harness import build_pair, distill_losses, make_batch


def test_factor_rises_to_one_and_falls_to_zero():
    schedule = Schedule(warmup=0.2, decay=0.5)
    factors = [schedule.factor(Progress(i, 100)) for i in (0, 10, 20, 50, 75, 100)]
    assert factors == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.5, 0.0])


def test_without_shares_it_is_one_throughout():
    assert {Schedule().factor(Progress(i, 10)) for i in range(10)} == {1.0}


def test_decay_over_the_whole_training_begins_at_one():
    assert [Schedule(decay=1.0).factor(Progress(i, 4)) for i in range(4)] == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("wrong", [{"warmup": -0.1}, {"decay": 1.5}])
def test_a_share_outside_of_zero_to_one_is_named(wrong):
    with pytest.raises(ValueError, match=r"DISTILL\.PKD\.(WARMUP|DECAY) is"):
        Schedule(**wrong, key="DISTILL.PKD")


def test_a_methods_weight_and_the_factor_follow_the_iteration():
    model = build_pair("PGD", "PKD")
    batch = make_batch("PGD", 1)
    (plain,) = distill_losses(model, batch).values()
    model.schedules = {"PKD": Schedule(warmup=0.5)}
    model.factor_schedule = Schedule(decay=1.0)
    model.set_progress(25, 100)
    (weighted,) = distill_losses(model, batch).values()
    assert weighted.item() == pytest.approx(plain.item() * 0.5 * 0.75, rel=1e-6)
    assert model.methods["PKD"].progress.iteration == 25
