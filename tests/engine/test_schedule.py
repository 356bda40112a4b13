"""SOLVER's numbers for another number of processes, and in epochs: computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from bevkd2.config import CfgNode, get_cfg
from bevkd2.engine import resolve_solver

KEYS = (
    *("SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR", "SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.STEPS"),
    *("SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD", "SOLVER.LR_HOLD_ITERS"),
)
EIGHT = ("SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.IMS_PER_BATCH", 16, "SOLVER.BASE_LR", 0.02)
PROCESSES = "bevkd2.d2.comm.get_world_size"


def make(*options: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_list(options)
    return cfg


def numbers(cfg: CfgNode) -> list[Any]:
    return [cfg[section][key] for section, key in (name.split(".") for name in KEYS)]


def resolve(cfg: CfgNode, samples: int | None = None) -> CfgNode:
    def count(cfg: CfgNode) -> int:
        assert samples is not None, "the data set need not be known"
        return samples

    return resolve_solver(cfg, count)


ITERATIONS = (
    *(*EIGHT, "SOLVER.MAX_ITER", 9000, "SOLVER.WARMUP_ITERS", 500, "SOLVER.STEPS", (6000, 8001)),
    *("SOLVER.CHECKPOINT_PERIOD", 1000, "TEST.EVAL_PERIOD", 3000, "SOLVER.LR_HOLD_ITERS", 100),
)


def test_two_processes_instead_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the batch and the rate, four times the iterations."""
    monkeypatch.setattr(PROCESSES, lambda: 2)
    cfg = resolve(make(*ITERATIONS))
    assert numbers(cfg) == [4, 0.005, 36000, 2000, (24000, 32004), 4000, 12000, 400]
    assert cfg.SOLVER.REFERENCE_WORLD_SIZE == 2
    assert resolve(cfg) is cfg  # as a dumped config is read back


def test_sixteen_processes_instead_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PROCESSES, lambda: 16)
    never = ("TEST.EVAL_PERIOD", 0, "SOLVER.LR_HOLD_ITERS", 1)
    found = numbers(resolve(make(*ITERATIONS, *never)))
    assert found == [32, 0.04, 4500, 250, (3000, 4000), 500, 0, 1]


def test_three_processes_instead_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Iterations are rounded; the batch of a process stays 2, and the samples seen within half a batch."""
    monkeypatch.setattr(PROCESSES, lambda: 3)
    found = numbers(resolve(make(*ITERATIONS, "SOLVER.MAX_ITER", 9001)))
    assert found == [6, 0.0075, 24003, 1333, (16000, 21336), 2667, 8000, 267]


def test_a_single_iteration_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PROCESSES, lambda: 16)
    assert resolve(make(*EIGHT, "SOLVER.MAX_ITER", 1)).SOLVER.MAX_ITER == 1


@pytest.mark.parametrize("reference", [0, 1])
def test_the_reference_world_size_scales_nothing(reference: int) -> None:
    cfg = make(*ITERATIONS, "SOLVER.REFERENCE_WORLD_SIZE", reference)
    assert resolve(cfg) is cfg


def test_a_batch_that_the_reference_cannot_divide_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"REFERENCE_WORLD_SIZE is 3, .*divides SOLVER\.IMS_PER_BATCH \(16\)"
    ):
        resolve(make(*ITERATIONS, "SOLVER.REFERENCE_WORLD_SIZE", 3))


EPOCHS = (
    *("SOLVER.EPOCHS", 24, "SOLVER.IMS_PER_BATCH", 8, "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"),
    *("SOLVER.STEPS", (16, 22), "SOLVER.CHECKPOINT_PERIOD", 1, "TEST.EVAL_PERIOD", 6),
    *("SOLVER.WARMUP_ITERS", 500, "SOLVER.LR_HOLD_ITERS", 0),
)


def test_epochs_of_nuscenes() -> None:
    """28,130 key frames in batches of 8 are 3,517 iterations, the last one beginning the next epoch."""
    cfg = resolve(make(*EPOCHS), 28130)
    assert numbers(cfg) == [8, 2e-4, 84408, 500, (56272, 77374), 3517, 21102, 3517]
    assert cfg.SOLVER.EPOCHS == 0 and resolve(cfg) is cfg


def test_epochs_need_a_fourth_of_the_iterations_with_four_times_the_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The batch becomes 32, an epoch ceil(28,130 / 32) = 880 iterations; warm-up is a fourth of 500."""
    monkeypatch.setattr(PROCESSES, lambda: 4)
    cfg = resolve(make(*EPOCHS, "SOLVER.REFERENCE_WORLD_SIZE", 1), 28130)
    assert numbers(cfg) == [32, 8e-4, 21120, 125, (14080, 19360), 880, 5280, 880]


def test_half_an_epoch_with_steps_after_its_end() -> None:
    """A period counts whole epochs and is at least one, so it may be longer than this training."""
    cfg = make("SOLVER.EPOCHS", 0.5, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.CHECKPOINT_PERIOD", 1)
    cfg.freeze()
    resolved = resolve(cfg, 103)  # 26 iterations per epoch
    assert resolved.SOLVER.MAX_ITER == 13 and resolved.is_frozen()
    assert resolved.SOLVER.CHECKPOINT_PERIOD == 26
    assert resolved.SOLVER.STEPS == cfg.SOLVER.STEPS  # of the other schedule


def test_hold_of_an_epoch_without_epochs() -> None:
    cfg = resolve(make("SOLVER.MAX_ITER", 100, "SOLVER.LR_HOLD_ITERS", 0, "SOLVER.IMS_PER_BATCH", 4), 103)
    assert (cfg.SOLVER.LR_HOLD_ITERS, cfg.SOLVER.MAX_ITER) == (26, 100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("SOLVER.MAX_ITER", 100), r"EPOCHS is 24 and SOLVER\.MAX_ITER 100; .*set one of them to 0"),
        (("SOLVER.CHECKPOINT_PERIOD", 3517), r"CHECKPOINT_PERIOD is 3517, beyond the 24 epochs"),
        (("TEST.EVAL_PERIOD", 25), r"EVAL_PERIOD is 25, beyond the 24 epochs"),
        (("SOLVER.STEPS", (16, 60000)), r"STEPS is 60000, beyond the 24 epochs"),
        (("SOLVER.EPOCHS", -1), r"EPOCHS is -1\.0, expected a positive number"),
        (("SOLVER.EPOCHS", 23.5, "TEST.EVAL_PERIOD", 25), r"EVAL_PERIOD is 25, beyond the 23\.5 epochs"),
        (
            ("SOLVER.EPOCHS", 1e-4, "SOLVER.STEPS", (), "TEST.EVAL_PERIOD", 1),
            r"EPOCHS is 0\.0001, at most half an iteration: an epoch has 3517 iterations",
        ),
    ],
)
def test_contradicting_settings_are_errors(options: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(make(*EPOCHS, *options), 28130)
