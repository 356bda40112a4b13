"""The training loop, its hooks' interface, and the trainer for one loss, one optimizer, one loader."""

import logging
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from bevkd2.d2.embedded import comm
from bevkd2.d2.embedded.events import EventStorage, get_event_storage
from bevkd2.errors import is_of_the_disk

_logger = logging.getLogger("detectron2.engine.train_loop")


class HookBase:
    """What runs around the steps of a trainer.

    ::

        hook.before_train()
        for trainer.iter in range(start_iter, max_iter):
            hook.before_step()
            trainer.run_step()      # calls hook.after_backward() between backward and optimizer step
            hook.after_step()
        hook.after_train()          # also after a failure

    ``before_step`` should take no time to speak of, so that timers are right; work goes to ``after_step``.
    """

    trainer: "TrainerBase" = None  # type: ignore[assignment]
    """The trainer, as a weak proxy; set when the hook is registered."""

    def before_train(self) -> None:
        """Runs before the first iteration."""

    def after_train(self) -> None:
        """Runs after the last iteration, or after a failure."""

    def before_step(self) -> None:
        """Runs before each iteration."""

    def after_backward(self) -> None:
        """Runs when an iteration's gradients are there."""

    def after_step(self) -> None:
        """Runs after each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint should keep.

        A hook that returns something also has ``load_state_dict``.
        """
        return {}


class TrainerBase:
    """A loop whose every behaviour but the step is a hook.

    Attributes:
        iter: the current iteration; equal to ``max_iter`` once the training has succeeded.
        start_iter: the iteration to start with.
        max_iter: the iteration to end before.
        storage: the EventStorage that is open during the training.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        """Adds hooks, which run in the order of registration.

        Args:
            hooks: the hooks; None is skipped.

        Raises:
            AssertionError: one is not a HookBase.
        """
        for hook in hooks:
            if hook is None:
                continue
            if not isinstance(hook, HookBase):
                raise AssertionError(f"register_hooks: {hook!r} is not a bevkd2.d2.HookBase")
            hook.trainer = weakref.proxy(self)  # hooks and trainer must not keep each other alive
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Runs the iterations [start_iter, max_iter).

        Args:
            start_iter: the first one.
            max_iter: one past the last one.
        """
        _logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage, ExitStack() as at_end:
            at_end.callback(self.after_train)
            at_end.push(_log_failure)
            self.before_train()
            for self.iter in range(start_iter, max_iter):
                self.before_step()
                self.run_step()
                self.after_step()
            self.iter = max_iter  # tells after_train that the training did not fail

    def before_train(self) -> None:
        """Calls the hooks' before_train."""
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        """Calls the hooks' after_train."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        """Calls the hooks' before_step; the storage is at this iteration from here on."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        """Calls the hooks' after_backward; ``run_step`` calls this."""
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        """Calls the hooks' after_step."""
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        """Does one iteration."""
        raise NotImplementedError

    def _named_hooks(self) -> Iterator[tuple[str, HookBase]]:
        """Hooks by the key of their state: the class name, with #1, #2, ... for more of one class."""
        seen: Counter[str] = Counter()
        for hook in self._hooks:
            name = type(hook).__qualname__
            yield (f"{name}#{seen[name]}" if seen[name] else name), hook
            seen[name] += 1

    def state_dict(self) -> dict[str, Any]:
        """Returns the iteration, and the states of the hooks that have one.

        Returns:
            ``{"iteration": int, "hooks": {hook name: state}}``, without "hooks" where no hook has a state.
        """
        states = {name: hook.state_dict() for name, hook in self._named_hooks()}
        states = {name: state for name, state in states.items() if state}
        return {"iteration": self.iter, **({"hooks": states} if states else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        Args:
            state_dict: the state; that of a hook which is not registered is skipped with a warning.
        """
        self.iter = state_dict["iteration"]
        hooks: dict[str, Any] = dict(self._named_hooks())
        for name, state in state_dict.get("hooks", {}).items():
            if name in hooks:
                hooks[name].load_state_dict(state)
            else:
                _logger.warning("Cannot find the hook '%s', its state_dict is ignored.", name)


def _log_failure(exc_type: type[BaseException] | None, exc: BaseException | None, traceback: Any) -> None:
    if exc_type is not None and issubclass(exc_type, Exception) and not is_of_the_disk(exc):
        _logger.error("Exception during training:", exc_info=exc)


class SimpleTrainer(TrainerBase):
    """Trainer for a model that returns losses, one optimizer and one data loader.

    A step takes a batch, sums the model's losses, computes the gradients and steps the optimizer.
    Checkpoints, logs, evaluation and the learning-rate schedule are hooks.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ):
        """Sets the model to training mode.

        Args:
            model: takes a batch, returns a scalar loss or a dict of them.
            data_loader: an endless iterable of batches.
            optimizer: the optimizer.
            gather_metric_period: gather the losses from all processes and log them every so many iterations.
            zero_grad_before_forward: clear the gradients before the forward pass, not after it.
            async_write_metrics: log the losses in a thread.
        """
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self._data_loader_iter_obj: Iterator[Any] | None = None
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        self.concurrent_executor = ThreadPoolExecutor(max_workers=1)  # one: in the order of submission
        self._pending_write: Future[Any] | None = None

    def run_step(self) -> None:
        """Does one iteration."""
        assert self.model.training, "[SimpleTrainer] model was changed to eval mode!"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict = self.model(data)
        if isinstance(loss_dict, torch.Tensor):
            loss_dict = {"total_loss": loss_dict}
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        sum(loss_dict.values()).backward()
        self.after_backward()
        self._log_losses(loss_dict, data_time)
        self.optimizer.step()

    def _log_losses(self, loss_dict: Mapping[str, torch.Tensor], data_time: float) -> None:
        if not self.async_write_metrics:
            self._write_metrics(loss_dict, data_time)
            return
        self._finish_write()
        self._pending_write = self.concurrent_executor.submit(
            self._write_metrics, loss_dict, data_time, iter=self.iter
        )

    def _finish_write(self) -> None:
        """Waits for the thread, and raises what was raised in it."""
        pending, self._pending_write = self._pending_write, None
        if pending is not None:
            pending.result()

    @property
    def _data_loader_iter(self) -> Iterator[Any]:
        """The iterator over the loader, made when the first batch is wanted."""
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable[Any]]) -> None:
        """Replaces the data loader; the old one is dropped before the new one is built.

        Args:
            data_loader_builder: takes nothing and returns the new loader.
        """
        del self.data_loader
        self._data_loader_iter_obj = None
        self.data_loader = data_loader_builder()

    def _write_metrics(
        self,
        loss_dict: Mapping[str, torch.Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        iteration = self.iter if iter is None else iter
        if (iteration + 1) % self.gather_metric_period == 0:
            SimpleTrainer.write_metrics(loss_dict, data_time, iteration, prefix)

    @staticmethod
    def write_metrics(
        loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int, prefix: str = ""
    ) -> None:
        """Puts the losses, averaged over the processes, into the current EventStorage.

        Args:
            loss_dict: name -> scalar loss.
            data_time: time that this process waited for the batch (s); the longest of all is logged.
            cur_iter: the iteration.
            prefix: put before ``total_loss``.

        Raises:
            FloatingPointError: the sum of the losses is not finite.
        """
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        losses = {name: loss.detach().cpu().item() for name, loss in loss_dict.items()}
        gathered = comm.gather((losses, data_time))
        if not comm.is_main_process():
            return
        storage.put_scalar("data_time", max(wait for _, wait in gathered), cur_iter=cur_iter)
        means = {name: float(np.mean([rank[name] for rank, _ in gathered])) for name in losses}
        total = sum(means.values())
        if not np.isfinite(total):
            raise FloatingPointError(
                f"Loss became infinite or NaN at iteration={cur_iter}!\nloss_dict = {means}"
            )
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(means) > 1:
            for name, mean in means.items():
                storage.put_scalar(name, mean, cur_iter=cur_iter)

    def state_dict(self) -> dict[str, Any]:
        """Returns the loop's state and the optimizer's."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])

    def after_train(self) -> None:
        """Waits for the metrics thread, so that hooks see its numbers, then calls the hooks."""
        with ExitStack() as at_end:
            at_end.callback(self.concurrent_executor.shutdown, wait=True)
            at_end.callback(super().after_train)
            self._finish_write()


def due(trainer: TrainerBase, period: int) -> bool:
    """Returns whether the step just done is a period's last or the training's last.

    Args:
        trainer: in ``after_step``.
        period: in steps, above 0.
    """
    return (trainer.iter + 1) % period == 0 or trainer.iter == trainer.max_iter - 1


def due_before_end(trainer: TrainerBase, period: int) -> bool:
    """Returns whether the step just done is a period's last, and not the training's.

    What is due at the training's end is left to ``after_train``.

    Args:
        trainer: in ``after_step``.
        period: steps; 0 or less is never due.
    """
    done = trainer.iter + 1
    return period > 0 and done % period == 0 and done != trainer.max_iter


def succeeded(trainer: TrainerBase) -> bool:
    """Returns whether, in after_train, the training came to its end; its last step may have failed too."""
    return trainer.iter >= trainer.max_iter
