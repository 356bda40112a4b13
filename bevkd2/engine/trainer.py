"""The training step: autocast, finite losses or none, clipped gradients; everything else is a hook."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bevkd2.d2 import SimpleTrainer, comm
from bevkd2.engine.hooks import Evaluate
from bevkd2.engine.metrics import MetricsHistory
from bevkd2.engine.solver import fit_optimizer_state
from bevkd2.engine.stop import StopOnSignal, StopSignals
from bevkd2.modeling.sample import sample_name

_logger = logging.getLogger(__name__)
_Sample = TypeVar("_Sample")
_SHOWN = 10  # names that an error lists
LOADING, TRAINING = 0, 1  # the two streams of random numbers of a step


class NonFiniteLossError(FloatingPointError):
    """A loss was NaN or infinite; the weights were not touched by this step."""


class NonFiniteGradientError(FloatingPointError):
    """All losses were finite, but a gradient was not; the weights were not touched by this step."""


@runtime_checkable
class HasValuesToLog(Protocol):
    """A model that has scalars for the log besides its losses."""

    def pop_values_to_log(self) -> dict[str, Tensor]:
        """Returns scalars of the last forward pass by name, on the device; each is returned once."""
        ...


@runtime_checkable
class HasProgress(Protocol):
    """A model whose losses depend on how far training is."""

    def set_progress(self, iteration: int, max_iter: int) -> None:
        """Receives how far training is, before each step.

        Args:
            iteration: the next iteration, counted from 0.
            max_iter: the number of iterations of the whole training.
        """
        ...


class DistillTrainer(SimpleTrainer):
    """Trains a model that returns a dict of losses, on any device.

    A step draws its random numbers from (seed, rank, iteration) alone. So a resumed training goes on as if it
    had never stopped, on every rank, and an evaluation in between changes nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        build_loader: Callable[[int], Iterable[list[dict[str, Any]]]],
        optimizer: torch.optim.Optimizer,
        *,
        amp_dtype: torch.dtype | None = None,
        max_grad_norm: float = float("inf"),
        grad_norm_type: float = 2.0,
        seed: int = 0,
        accumulation_steps: int = 1,
        gather_metric_period: int = 1,
    ) -> None:
        """Sets the model to training mode.

        Args:
            model: takes a list of samples, returns scalar losses by name; may be in DistributedDataParallel.
            build_loader: start iteration -> endless iterable of the batches from that iteration on.
            optimizer: over the trainable parameters.
            amp_dtype: autocast type of the forward pass: bfloat16, float16 (which also scales the loss) or
                None.
            max_grad_norm: largest norm of all gradients together; they are scaled down to it.
            grad_norm_type: p of that norm.
            seed: what every step's random numbers derive from.
            accumulation_steps: parts of a batch, which pass through the model one after another; the weights
                move once, by the mean of the parts' gradients.
            gather_metric_period: iterations between two gatherings of losses from all ranks.
        """
        super().__init__(model, (), optimizer, gather_metric_period)
        self._build_loader = build_loader
        self._device_type = next(model.parameters()).device.type
        self.amp_dtype = amp_dtype
        self.max_grad_norm = max_grad_norm
        self.grad_norm_type = grad_norm_type
        self.seed = seed
        self.accumulation_steps = accumulation_steps
        self.grad_scaler = torch.amp.GradScaler(self._device_type, enabled=amp_dtype == torch.float16)
        self._skipped_steps = 0
        self.stop_signals = StopSignals()

    @property
    def latest_results(self) -> Mapping[str, Any]:
        """Scores of the last evaluation, task -> metric -> score; empty before the first."""
        found = [hook.latest_results for hook in self._hooks if isinstance(hook, Evaluate)]
        return found[0] if found else {}

    @property
    def has_begun(self) -> bool:
        """Whether the loop has begun; errors before it, as of the loader, are those of config and data."""
        return hasattr(self, "storage")

    def train(self, start_iter: int, max_iter: int) -> None:
        """Runs the iterations [start_iter, max_iter), on the data that belong to them.

        Args:
            start_iter: 0, or one after the last iteration of the checkpoint that was loaded.
            max_iter: one past the last one.

        Raises:
            Stopped: a signal ended the training, see :class:`bevkd2.engine.stop.StopOnSignal`.
        """
        if start_iter < max_iter:
            self.reset_data_loader(lambda: self._build_loader(start_iter))
        with self.stop_signals:
            super().train(start_iter, max_iter)
        if self._skipped_steps:
            _logger.info(
                "float16: %d of %d steps were skipped, since their gradients overflowed; the scale of the "
                "loss is %g now",
                self._skipped_steps,
                max_iter - start_iter,
                self.grad_scaler.get_scale(),
            )

    def before_train(self) -> None:
        """Calls the hooks' before_train, and ends the iteration that a resumed training starts from.

        A checkpoint is saved between the hooks of its iteration; those behind it, such as the evaluation,
        may not have run before the interruption. They do now, with the scalars of that iteration.
        """
        super().before_train()
        if not any(isinstance(hook, MetricsHistory) and hook.restored for hook in self._hooks):
            return
        self.iter = self.storage.iter = self.start_iter - 1
        behind = itertools.dropwhile(lambda hook: not isinstance(hook, StopOnSignal), self._hooks)
        for hook in list(behind)[1:]:
            hook.after_step()
        self.iter = self.storage.iter = self.start_iter

    def after_train(self) -> None:
        """Calls the hooks' after_train; Detectron2 counts an iteration too many where none was to be done."""
        self.iter = min(self.iter, self.max_iter)
        super().after_train()

    def run_step(self) -> None:
        """Does one iteration, which waits for the device once.

        Raises:
            RuntimeError: the model is in eval mode.
            NonFiniteLossError: a loss is NaN or infinite.
            NonFiniteGradientError: a gradient is, while the losses are finite (float16 skips the step
                instead).
        """
        if not self.model.training:
            raise RuntimeError(
                f"iteration {self.iter}: the model is in eval mode, expected training mode; what "
                "evaluates it between two steps, such as a hook, must call model.train() afterwards"
            )
        batch, data_time = self._next_batch()
        model = self._bare_model()
        if isinstance(model, HasProgress):
            model.set_progress(self.iter, self.max_iter)

        self.optimizer.zero_grad(set_to_none=True)
        losses, to_log = self._add_gradients(batch)
        self.after_backward()
        self.grad_scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in trained], self.grad_norm_type)
        # The one wait for the device: losses, logged values and the norm are copied together, after the
        # backward pass is queued. With several processes this also lets all of them meet a NaN, in the
        # averaged gradients, so that none waits for ever.
        values = iter(_copy_scalars([*losses.values(), *to_log.values(), norm]))
        losses = {name: next(values) for name in losses}
        to_log = {name: next(values) for name in to_log}
        grad_norm = next(values).item()
        self._check_losses(losses, batch)
        self._check_norm(grad_norm)
        nn.utils.clip_grads_with_norm_(trained, self.max_grad_norm, norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        # Where the scaler skips the first step, torch's schedulers would warn of a wrong order of calls.
        self.optimizer._opt_called = True
        self._write_metrics(losses, data_time)
        for name, value in to_log.items():
            self.storage.put_scalar(name, value.item())
        if math.isfinite(grad_norm):
            self.storage.put_scalar("grad_norm", grad_norm)
        else:  # float16 skips steps whose gradients overflow
            self._skipped_steps += 1
        if self.grad_scaler.is_enabled():
            self.storage.put_scalar("[metric]grad_scale", self.grad_scaler.get_scale())

    def _add_gradients(self, batch: list[dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Runs the model forward and backward, on one part of the batch after the other.

        Returns:
            The losses and the model's values to log, by name: means over the samples, on the device.
        """
        totals: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        parts = split_batch(batch, self.accumulation_steps)
        for number, part in enumerate(parts, start=1):
            share = len(part) / len(batch)
            # Processes exchange their gradients once, when the last part's are added.
            alone = isinstance(self.model, DistributedDataParallel) and number < len(parts)
            with self.model.no_sync() if alone else contextlib.nullcontext():
                with torch.autocast(
                    self._device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None
                ):
                    losses = self.model(part)
                self.grad_scaler.scale(sum(losses.values()) * share).backward()
            for total, values in zip(totals, (losses, self._values_to_log()), strict=True):
                for name, value in values.items():
                    total[name] = total.get(name, 0.0) + share * value.detach()
        return totals

    def _next_batch(self) -> tuple[list[dict[str, Any]], float]:
        """Returns a batch and the seconds that it took, and leaves the generators seeded for the model."""
        start = time.perf_counter()
        iterator = self._data_loader_iter  # before seeding: DataLoader then draws a number for its workers
        seed_step(self.seed, comm.get_rank(), self.iter, LOADING)
        batch = next(iterator)
        seed_step(self.seed, comm.get_rank(), self.iter, TRAINING)  # whatever was drawn to load the batch
        return batch, time.perf_counter() - start

    def _values_to_log(self) -> dict[str, Tensor]:
        """Returns what the model has to log besides its losses, by name, on the device."""
        model = self._bare_model()
        return model.pop_values_to_log() if isinstance(model, HasValuesToLog) else {}

    def _bare_model(self) -> nn.Module:
        model: nn.Module = self.model
        return model.module if isinstance(model, DistributedDataParallel) else model

    def _check_losses(self, losses: Mapping[str, Tensor], batch: Sequence[Mapping[str, Any]]) -> None:
        bad = [f"{name}={value.item():g}" for name, value in losses.items() if not value.isfinite()]
        if bad:
            tokens = ", ".join(sample_name(sample) for sample in batch)
            raise NonFiniteLossError(
                f"iteration {self.iter}: {', '.join(bad)} on the samples {tokens}. The weights were not "
                "updated and the last checkpoint is unchanged. Look at these samples; if they are sound, "
                "lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS, or try SOLVER.AMP.ENABLED False"
            )

    def _check_norm(self, norm: float) -> None:
        if not math.isfinite(norm) and not self.grad_scaler.is_enabled():
            raise NonFiniteGradientError(
                f"iteration {self.iter}: the gradients' norm is {norm}, though all losses are finite; not "
                "finite are those of "
                f"{', '.join(self._non_finite_gradients()) or 'no single parameter (the norm overflows)'}. "
                "The weights were not updated and the last checkpoint is unchanged. With several processes, "
                "another rank's log may name a loss"
            )

    def _non_finite_gradients(self) -> list[str]:
        named = self.model.named_parameters()
        names = [name for name, p in named if p.grad is not None and not p.grad.isfinite().all()]
        return names[:_SHOWN] + ([f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of loop, hooks, optimizer (with its parameters' names) and loss scaler."""
        return {
            **super().state_dict(),
            "optimizer_names": self._optimizer_names(),
            "grad_scaler": self.grad_scaler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned; the settings of the optimizer stay its own.

        Raises:
            ValueError: it is not of such a trainer, or the optimizer is of another kind or had other
                parameters.
        """
        if absent := [key for key in ("iteration", "optimizer") if key not in state_dict]:
            raise ValueError(
                f"the checkpoint's trainer has no {' and no '.join(absent)}, only {', '.join(state_dict)}, "
                "so another program saved it; start a new run from its weights: set MODEL.WEIGHTS and leave "
                "out --resume"
            )
        if type(iteration := state_dict["iteration"]) is not int or iteration < 0:
            raise ValueError(f"iteration is {iteration!r}, expected a whole number from 0; it is damaged")
        optimizer = fit_optimizer_state(
            state_dict["optimizer"],
            state_dict.get("optimizer_names"),
            self.optimizer,
            self._optimizer_names(),
        )
        super().load_state_dict({**state_dict, "optimizer": optimizer})
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])

    def _optimizer_names(self) -> list[str]:
        """Returns the optimizer's parameters, in the order of their groups."""
        names = {id(parameter): name for name, parameter in self._bare_model().named_parameters()}
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        return [names.get(id(parameter), f"parameter {i}") for i, parameter in enumerate(trained)]


def split_batch(batch: Sequence[_Sample], parts: int) -> list[Sequence[_Sample]]:
    """Returns the parts of a batch, of equal length where their number divides the batch's.

    Args:
        batch: the samples of a process.
        parts: how many; there are fewer where the batch has fewer samples.
    """
    size = max(-(-len(batch) // parts), 1)
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def _copy_scalars(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Returns scalars as float32 on the CPU, in one copy."""
    return torch.stack([value.detach().float() for value in values]).cpu().unbind()


def seed_step(seed: int, rank: int, iteration: int, stream: int) -> None:
    """Seeds Python's, numpy's and torch's generators for one part of one iteration of one process.

    Args:
        seed: the run's seed, not negative.
        rank: the process.
        iteration: the iteration.
        stream: LOADING or TRAINING.
    """
    # SeedSequence mixes them, so that neighbouring numbers give unrelated streams.
    state = int(np.random.SeedSequence((seed, rank, iteration, stream)).generate_state(1, np.uint64)[0])
    torch.manual_seed(state)
    random.seed(state)
    np.random.seed(state % 2**32)
