"""Ending a training on a signal: a checkpoint of the current iteration, then exit."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, TypeVar

from bevkd2.checkpoint import Checkpointer
from bevkd2.d2 import HookBase, comm

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""The signals that end a training: of schedulers and ``kill``, of Ctrl-C, of Slurm before a time limit."""

INTERRUPTED = "model_interrupted"
"""Name of the checkpoint, without suffix; a later periodic checkpoint replaces it."""


class Stopped(SystemExit):
    """A signal ended the training; the exit status is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class StopSignals:
    """Context manager that notes the first of ``STOP_SIGNALS`` and lets the process go on.

    A second SIGINT ends the process at once. One after another signal does not: a Ctrl-C reaches a
    launcher's processes, too, perhaps behind the SIGTERM that the launcher passes on.

    Attributes:
        received: the number of the first signal; 0: none yet.
    """

    def __init__(self, forward: Callable[[], None] = lambda: None) -> None:
        """Takes what else is to be done on the first signal.

        Args:
            forward: called in the signal's handler.
        """
        self.received = 0
        self._forward = forward
        self._raises = False
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            self._earlier = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, Stopped):
            return  # the process ends; whoever started it may still send signals, which must not cut it short
        for number, handler in self._earlier.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self.received:
            return
        self.received = number
        self._forward()
        if self._raises:
            raise Stopped(number)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raises Stopped as soon as a signal comes, also one that has come before.

        Only for what changes nothing that a checkpoint holds: the exception may come anywhere.
        """
        self._raises = True
        shown = sys.unraisablehook
        sys.unraisablehook = lambda of: None if isinstance(of.exc_value, Stopped) else shown(of)
        try:
            if self.received:
                raise Stopped(self.received)
            yield
        finally:
            self._raises = False
            sys.unraisablehook = shown
        if self.received:  # raised in a place that ignores exceptions, such as __del__
            raise Stopped(self.received)


class StopOnSignal(HookBase):
    """Saves a checkpoint and ends the process in the iteration in which any process got a signal.

    It goes right behind the hook that saves checkpoints, on all processes. The hooks behind it are run when
    the training is resumed, see ``DistillTrainer.before_train``.
    """

    def __init__(self, signals: StopSignals, checkpointer: Checkpointer, period: int) -> None:
        """Takes what it works with.

        Args:
            signals: the trainer's.
            checkpointer: saves model and trainer.
            period: iterations between two checkpoints.
        """
        self._signals, self._checkpointer, self._period = signals, checkpointer, period

    def after_step(self) -> None:
        """Ends the training if any process got a signal; a step costs one exchange of a number."""
        number = max(comm.all_gather(self._signals.received))
        if number:
            self._save(number)
            comm.synchronize()  # the first process to end makes the launcher end the others
            raise Stopped(number)
        if self._is_saved():
            self._checkpointer.remove(INTERRUPTED)

    def interruptible(self, evaluate: Callable[[], _Result]) -> Callable[[], _Result]:
        """Returns an evaluation that a signal ends at once, after a checkpoint of its iteration.

        The processes do not wait for each other: one may be in a collective call of the evaluation.

        Args:
            evaluate: scores the model.
        """

        def run() -> _Result:
            try:
                with self._signals.raised():
                    return evaluate()
            except Stopped as stopped:
                self._save(stopped.number)
                raise

        return run

    def _is_saved(self) -> bool:
        done = self.trainer.iter + 1
        return bool(done % self._period == 0 or done >= self.trainer.max_iter)

    def _save(self, number: int) -> None:
        if not self._is_saved():
            self._checkpointer.save(INTERRUPTED, iteration=self.trainer.iter)
        _logger.warning(
            "%s: ending after iteration %d%s",
            signal.Signals(number).name,
            min(self.trainer.iter, self.trainer.max_iter - 1),
            ", which is saved; --resume goes on from there" if self._checkpointer.save_to_disk else "",
        )
