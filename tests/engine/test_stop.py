"""A signal ends a training with a checkpoint, from which it goes on exactly."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException

from bevkd2.checkpoint import Checkpointer, load_file
from bevkd2.d2 import build_model
from bevkd2.engine import train
from bevkd2.engine.launch import _spawn
from bevkd2.engine.stop import INTERRUPTED, STOP_SIGNALS, StopOnSignal, Stopped, StopSignals
from tests.engine.test_build import run, toy_evaluate
from tests.engine.toys import ToyLoader, build_toy_loader, flat, toy_cfg
from tests.reliability.rows import rows


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Signalled(ToyLoader):
    """Sends a signal to this process when the batch of an iteration is wanted."""

    def __init__(self, cfg: Any, start_iter: int, number: int, at: int) -> None:
        super().__init__(cfg, start_iter)
        self._first, self._number, self._at = start_iter, number, at

    def __iter__(self) -> Any:
        for iteration, batch in enumerate(super().__iter__(), self._first):
            if iteration == self._at:
                os.kill(os.getpid(), self._number)
            yield batch


def stopped_in_step(cfg: Any, number: int, at: int) -> Stopped:
    with pytest.raises(Stopped) as caught:
        run(cfg, build_loader=lambda cfg, start_iter: Signalled(cfg, start_iter, number, at))
    return caught.value


def same_as_straight(tmp_path: Path, cfg: Any, *options: Any) -> None:
    straight = run(toy_cfg(tmp_path / "straight", *options))
    assert torch.equal(flat(straight), flat(run(cfg, resume=True)))
    assert rows(tmp_path / "straight") == rows(Path(cfg.OUTPUT_DIR))


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_current_iteration_is_saved_and_resumed_exactly(
    tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("TEST.EVAL_PERIOD", 2, "TEST.PRINT_PERIOD", 4)
    cfg = toy_cfg(tmp_path / "stopped", *options)
    assert stopped_in_step(cfg, number, 3).code == 128 + number
    output = Path(cfg.OUTPUT_DIR)
    assert (output / "last_checkpoint").read_text() == f"{INTERRUPTED}.pth"
    assert load_file(output / f"{INTERRUPTED}.pth")["iteration"] == 3
    assert f"{signal.Signals(number).name}: ending after iteration 3, which is saved" in caplog.text
    same_as_straight(tmp_path, cfg, *options)
    assert not (output / f"{INTERRUPTED}.pth").exists()  # a periodic checkpoint came after it


def test_a_checkpoint_that_is_due_is_not_saved_twice(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path / "stopped")
    stopped_in_step(cfg, signal.SIGTERM, 2)
    assert (tmp_path / "stopped" / "last_checkpoint").read_text() == "model_0000002.pth"
    assert not (tmp_path / "stopped" / f"{INTERRUPTED}.pth").exists()
    same_as_straight(tmp_path, cfg)


@pytest.mark.parametrize(("evaluation", "last"), [(1, INTERRUPTED), (2, INTERRUPTED), (3, "model_final")])
def test_an_evaluation_ends_at_once(tmp_path: Path, evaluation: int, last: str) -> None:
    """After iterations 1 and 3, and at the end; checkpoints are due after iterations 2 and 5."""
    options = ("TEST.EVAL_PERIOD", 2)
    cfg, calls = toy_cfg(tmp_path / "stopped", *options), []

    def evaluate(cfg: Any, model: Any) -> Any:
        calls.append(model.training)
        if len(calls) == evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
            calls.append("not reached")
        return toy_evaluate(cfg, model)

    torch.manual_seed(0)
    with pytest.raises(Stopped):
        train(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=evaluate)
    assert len(calls) == evaluation
    assert (tmp_path / "stopped" / "last_checkpoint").read_text() == f"{last}.pth"
    same_as_straight(tmp_path, cfg, *options)


def test_a_second_interrupt_ends_the_process_at_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        assert signal.getsignal(signal.SIGINT) not in (before, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)  # of a launcher, which the terminal's SIGINT has reached first
        assert signals.received == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)  # the same Ctrl-C
        assert signals.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) == before


def test_only_the_process_that_saves_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    signals = StopSignals()
    signals.received = signal.SIGTERM
    hook = StopOnSignal(signals, Checkpointer(nn.Linear(1, 1), str(tmp_path), save_to_disk=False), 5)
    hook.trainer = SimpleNamespace(iter=3, max_iter=10)
    with pytest.raises(Stopped):
        hook.after_step()
    assert "SIGTERM: ending after iteration 3" in caplog.text and "saved" not in caplog.text


class Context:
    """Processes that a signal ends, or that have ended with a status."""

    def __init__(self, number: int, status: int) -> None:
        self.processes, self.ended, self._number, self._status = [self], 0, number, status

    def terminate(self) -> None:
        self.ended += 1

    def join(self) -> bool:
        if self._number:
            os.kill(os.getpid(), self._number)
            self._number = 0
            return False
        if self._status:
            raise ProcessExitedException("process 0 terminated", 0, 1, self._status)
        return True


@pytest.mark.parametrize(
    ("number", "status", "passed_on", "expected"),
    [
        (signal.SIGINT, 128 + signal.SIGTERM, 1, 128 + signal.SIGINT),
        (signal.SIGTERM, -signal.SIGTERM, 1, 128 + signal.SIGTERM),  # before the training began
        (signal.SIGUSR1, 0, 1, 128 + signal.SIGUSR1),
        (0, 128 + signal.SIGUSR1, 0, 128 + signal.SIGUSR1),  # a process alone got it
    ],
)
def test_the_launcher_passes_a_signal_on_and_has_its_status(
    monkeypatch: pytest.MonkeyPatch, number: int, status: int, passed_on: int, expected: int
) -> None:
    context = Context(number, status)
    monkeypatch.setitem(_spawn.__globals__, "start_processes", lambda *args, **kwargs: context)
    with pytest.raises(SystemExit) as caught:
        _spawn((), 1)
    assert caught.value.code == expected and context.ended == passed_on


def test_another_failure_of_a_process_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_spawn.__globals__, "start_processes", lambda *args, **kwargs: Context(0, 1))
    with pytest.raises(ProcessExitedException):
        _spawn((), 1)
