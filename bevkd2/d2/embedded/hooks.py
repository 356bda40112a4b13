"""The stock hooks: callbacks, timing, writing, learning rate, evaluation, memory, and those that save."""

import datetime
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer
from torch.optim.lr_scheduler import LRScheduler as _LRScheduler

from bevkd2.d2.embedded import comm
from bevkd2.d2.embedded.checkpoint_hooks import BestCheckpointer, PeriodicCheckpointer
from bevkd2.d2.embedded.results import flatten_results_dict
from bevkd2.d2.embedded.scheduler import LRMultiplier
from bevkd2.d2.embedded.train_loop import HookBase, TrainerBase, due, due_before_end, succeeded
from bevkd2.d2.embedded.writers import EventWriter

__all__ = [
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "TorchMemoryStats",
]

_logger = logging.getLogger("detectron2.engine.hooks")

Callback = Callable[[TrainerBase], Any] | None


class CallbackHook(HookBase):
    """A hook made of functions."""

    def __init__(
        self,
        *,
        before_train: Callback = None,
        after_train: Callback = None,
        before_step: Callback = None,
        after_step: Callback = None,
    ):
        """Takes the functions.

        Args:
            before_train: called with the trainer, like the others.
            after_train: see HookBase.
            before_step: see HookBase.
            after_step: see HookBase.
        """
        self._callbacks = {
            "before_train": before_train,
            "after_train": after_train,
            "before_step": before_step,
            "after_step": after_step,
        }

    def _call(self, name: str) -> None:
        callback = self._callbacks[name]
        if callback is not None:
            callback(self.trainer)

    def before_train(self) -> None:
        """Calls the function, if there is one."""
        self._call("before_train")

    def after_train(self) -> None:
        """Calls the function, then drops all of them: closures often keep the trainer alive."""
        self._call("after_train")
        self._callbacks = dict.fromkeys(self._callbacks)

    def before_step(self) -> None:
        """Calls the function, if there is one."""
        self._call("before_step")

    def after_step(self) -> None:
        """Calls the function, if there is one."""
        self._call("after_step")


class IterationTimer(HookBase):
    """Puts each iteration's ``time`` into the storage and logs a summary at the end.

    Put it first: it measures from its own ``before_step`` to its own ``after_step``.
    """

    def __init__(self, warmup_iter: int = 3):
        """Sets up the timers.

        Args:
            warmup_iter: iterations at the beginning that are not counted.
        """
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._total_timer = Timer()
        self._start_time = time.perf_counter()

    def before_train(self) -> None:
        """Starts the clock."""
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def before_step(self) -> None:
        """Starts the step's clock."""
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self) -> None:
        """Stores the step's time; resets while warming up."""
        steps_done = self.trainer.storage.iter - self.trainer.start_iter + 1
        if steps_done >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._start_time = time.perf_counter()
            self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self) -> None:
        """Logs the speed and the total time."""
        total = time.perf_counter() - self._start_time
        steps_time = self._total_timer.seconds()
        # the last warm-up step is timed; the storage's iteration is already one past the last step
        steps = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if steps > 0 and steps_time > 0:
            _logger.info(
                f"Overall training speed: {steps} iterations in {_hms(steps_time)} "
                f"({steps_time / steps:.4f} s / it)"
            )
        _logger.info(f"Total training time: {_hms(total)} ({_hms(total - steps_time)} on hooks)")


def _hms(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))


class PeriodicWriter(HookBase):
    """Calls the writers every ``period`` iterations, after the last one, and at the end."""

    def __init__(self, writers: list[EventWriter], period: int = 20):
        """Takes the writers.

        Args:
            writers: the writers.
            period: iterations between two writes.

        Raises:
            AssertionError: one is not an EventWriter.
        """
        for writer in writers:
            if not isinstance(writer, EventWriter):
                raise AssertionError(f"PeriodicWriter: {writer!r} is not a bevkd2.d2.EventWriter")
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        """Writes every ``period`` iterations."""
        if due(self.trainer, self._period):
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        """Writes what other hooks' after_train may have added, and closes the writers."""
        for writer in self._writers:
            writer.write()
            writer.close()


class LRScheduler(HookBase):
    """Steps the learning-rate schedule after every iteration and puts ``lr`` into the storage."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: "_LRScheduler | ParamScheduler | None" = None,
    ):
        """Takes the schedule.

        Args:
            optimizer: by default the trainer's.
            scheduler: torch's kind, or fvcore's, which then multiplies the optimizer's learning rates; by
                default the trainer's.
        """
        self._optimizer = optimizer
        self._scheduler = scheduler

    def before_train(self) -> None:
        """Finds the optimizer; converts an fvcore schedule to a torch scheduler."""
        self._optimizer = self._optimizer or self.trainer.optimizer  # type: ignore[attr-defined]
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, self.trainer.max_iter, last_iter=self.trainer.iter - 1
            )
        self._best_param_group_id = self.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """Returns the parameter group whose learning rate is logged.

        Args:
            optimizer: the optimizer.

        Returns:
            Index of the first group with the most tensors or, where every group has one tensor, of the first
            with the commonest learning rate.
        """
        groups = optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    @property
    def scheduler(self) -> Any:
        """The schedule."""
        return self._scheduler or self.trainer.scheduler  # type: ignore[attr-defined]

    def after_step(self) -> None:
        """Puts the learning rate of the step just done and steps the schedule."""
        lr = self._optimizer.param_groups[self._best_param_group_id]["lr"]  # type: ignore[union-attr]
        self.trainer.storage.put_scalar("lr", lr, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Returns the schedule's position."""
        return self.scheduler.state_dict() if isinstance(self.scheduler, _LRScheduler) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned; an fvcore schedule follows the trainer instead."""
        if isinstance(self.scheduler, _LRScheduler):
            _logger.info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Evaluates every ``eval_period`` iterations and at the end of a training that did not fail."""

    def __init__(
        self,
        eval_period: int,
        eval_function: Callable[[], dict[str, Any] | None],
        eval_after_train: bool = True,
    ):
        """Takes the function; all processes must have this hook.

        Args:
            eval_period: iterations between two evaluations; 0: only at the end.
            eval_function: returns nested dicts of floats, or None.
            eval_after_train: evaluate at the end.
        """
        self._period = eval_period
        self._func: Callable[[], dict[str, Any] | None] | None = eval_function
        self._eval_after_train = eval_after_train

    def after_step(self) -> None:
        """Evaluates every ``eval_period`` iterations."""
        if due_before_end(self.trainer, self._period):
            self._do_eval()

    def after_train(self) -> None:
        """Evaluates, then drops the function: closures often keep the trainer alive."""
        if self._eval_after_train and succeeded(self.trainer):
            self._do_eval()
        self._func = None

    def _do_eval(self) -> None:
        assert self._func is not None, "the hook is used again after its training"
        results = self._func()
        if results:
            if not isinstance(results, dict):
                raise AssertionError(f"Eval function must return a dict. Got {results} instead.")
            for name, value in flatten_results_dict(results).items():
                self.trainer.storage.put_scalar(name, _to_float(name, value), smoothing_hint=False)
        comm.synchronize()  # processes may take different times


def _to_float(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"[EvalHook] eval_function should return a nested dict of float. Got '{name}: {value}' instead."
        ) from error


class TorchMemoryStats(HookBase):
    """Logs torch's CUDA memory statistics a few times."""

    def __init__(self, period: int = 20, max_runs: int = 10):
        """Sets when.

        Args:
            period: iterations between two logs.
            max_runs: number of logs; the last one has the full summary.
        """
        self._period = period
        self._max_runs = max_runs
        self._runs = 0

    def after_step(self) -> None:
        """Logs every ``period`` iterations and resets the peak."""
        if self._runs >= self._max_runs or not due(self.trainer, self._period):
            return
        if not torch.cuda.is_available():
            return
        _logger.info(
            f" iter: {self.trainer.iter} "
            f" max_reserved_mem: {torch.cuda.max_memory_reserved() / 2**20:.0f}MB "
            f" reserved_mem: {torch.cuda.memory_reserved() / 2**20:.0f}MB "
            f" max_allocated_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}MB "
            f" allocated_mem: {torch.cuda.memory_allocated() / 2**20:.0f}MB "
        )
        self._runs += 1
        if self._runs == self._max_runs:
            _logger.info("\n" + torch.cuda.memory_summary())
        torch.cuda.reset_peak_memory_stats()
