"""Hooks of a distillation training, beside the stock ones of ``bevkd2.d2``, and the plugins' registry."""

from __future__ import annotations

import copy
import logging
import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from bevkd2.d2 import EvalHook, HookBase, Registry, comm, flatten_results_dict

HOOK_REGISTRY = Registry("HOOK")
HOOK_REGISTRY.__doc__ = """Hooks by name, as the config's HOOKS lists them.

Each is called as ``hook(cfg, model)`` and returns a HookBase, or None where there is nothing to do; ``model``
is not in DistributedDataParallel.
"""

_logger = logging.getLogger(__name__)


class AverageWeights(HookBase):
    """Keeps an exponential moving average of the weights; goes before the hooks that save and evaluate.

    After step t, counted from 1, it is ``d * average + (1 - d) * weights``, d = min(decay, (1 + t) / (10 +
    t)). Buffers, such as running statistics, and frozen parameters are the model's.

    Attributes:
        model: a copy of the model, with the average as its weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Copies the model.

        Args:
            model: what is deployed, with the weights that the training starts from; of a Distiller, the
                student.
            decay: d of a late step, from 0 to 1.
        """
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._decay = decay
        pairs = list(zip(self.model.parameters(), model.parameters(), strict=True))
        self._averages = [average for average, weight in pairs if weight.requires_grad]
        self._weights = [weight for _, weight in pairs if weight.requires_grad]
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def after_step(self) -> None:
        """Moves the average."""
        done = self.trainer.iter + 1
        update = get_ema_multi_avg_fn(min(self._decay, (1 + done) / (10 + done)))
        update(self._averages, self._weights, None)
        for copied, buffer in self._buffers:
            copied.copy_(buffer)


@runtime_checkable
class InheritsWeights(Protocol):
    """A model with parameters that must stay equal to another's."""

    def verify_inherited(self) -> None:
        """Raises RuntimeError where a frozen, inherited parameter has moved."""
        ...


class VerifyInherited(HookBase):
    """Verifies inherited parameters before every checkpoint and evaluation, and at the end.

    Goes before the hooks that save and evaluate, so that what they see is verified.
    """

    def __init__(self, model: InheritsWeights, periods: tuple[int, ...]) -> None:
        """Sets when to verify.

        Args:
            model: the model.
            periods: iterations between two checkpoints, evaluations, ...; 0: never.
        """
        self._model = model
        self._periods = [period for period in periods if period > 0]

    def before_train(self) -> None:
        """Verifies what was built or loaded."""
        self._model.verify_inherited()

    def after_step(self) -> None:
        """Verifies, if a period ends here, or the training."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or any(done % period == 0 for period in self._periods):
            self._model.verify_inherited()


@runtime_checkable
class LooksForUnreached(Protocol):
    """A model that can say which of its distillation losses have no gradient on the backbone."""

    look_for_unreached: bool

    def pop_unreached(self) -> list[str]:
        """Returns the losses whose gradient did not reach the backbone when it was last looked for."""
        ...


class WarnOfUnreached(HookBase):
    """Warns, once, of distillation losses that teach the student's image backbone nothing.

    It looks a while after the start: some layers begin with zero weights, which stop every gradient. One
    backward pass per loss is added to that one iteration.
    """

    def __init__(self, model: LooksForUnreached, iteration: int = 50) -> None:
        """Sets when to look.

        Args:
            model: the model, not in DistributedDataParallel.
            iteration: of the run, counted from its start; the last one of a shorter run.
        """
        self._model, self._iteration = model, iteration

    def before_train(self) -> None:
        """Finds the iteration, in a resumed training too."""
        last = self.trainer.max_iter - 1
        self._iteration = min(self.trainer.start_iter + self._iteration, last)

    def before_step(self) -> None:
        """Lets the model look in this iteration."""
        if self.trainer.iter == self._iteration:
            self._model.look_for_unreached = True

    def after_step(self) -> None:
        """Warns of what it found."""
        for name in self._model.pop_unreached():
            _logger.warning(
                "the gradient of the distillation loss %s does not reach the student's image backbone: it "
                "teaches only later layers. bevkd2 analyze-distillation prints the gradients of all losses",
                name,
            )


class Evaluate(EvalHook):
    """Detectron2's EvalHook, which keeps the last scores.

    Attributes:
        latest_results: task -> metric -> score of the last evaluation; empty before the first, and on other
            processes than the main one.
    """

    def __init__(self, period: int, evaluate: Callable[[], Mapping[str, Any]]) -> None:
        """Takes the function; all processes must have this hook.

        Args:
            period: iterations between two evaluations; 0: at the end only.
            evaluate: scores the model and returns task -> metric -> score.
        """
        self.latest_results: Mapping[str, Any] = {}

        def keep() -> dict[str, Any]:
            self.latest_results = results = dict(evaluate())
            return results

        super().__init__(period, keep)


class EvaluateTeacher(HookBase):
    """Scores the teacher before the first step; its metrics are logged as ``teacher/...``."""

    def __init__(self, evaluate: Callable[[], Mapping[str, Any]]) -> None:
        """Takes the function; all processes must have this hook.

        Args:
            evaluate: scores the teacher and returns task -> metric -> score.
        """
        self._evaluate = evaluate

    def before_train(self) -> None:
        """Scores the teacher, but not again where a training resumes."""
        if self.trainer.start_iter > 0:
            return
        _logger.info("evaluating the teacher")
        for name, value in flatten_results_dict(self._evaluate()).items():
            self.trainer.storage.put_scalar(f"teacher/{name}", value, smoothing_hint=False)
        comm.synchronize()


class PeakMemory(HookBase):
    """Puts ``max_mem_mb`` (MiB) into the storage: peak of GPU memory in tensors, or of the resident set."""

    def __init__(self, device: torch.device, period: int) -> None:
        """Sets what is measured.

        Args:
            device: where the model is.
            period: iterations between two measurements.
        """
        self._device = device
        self._period = period

    def before_train(self) -> None:
        """Resets the GPU's peak; the CPU's cannot be reset."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def after_step(self) -> None:
        """Measures, if a period ends here, or the training."""
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            self.trainer.storage.put_scalar("max_mem_mb", peak_memory_mb(self._device), smoothing_hint=False)

    def after_train(self) -> None:
        """Logs the peak."""
        kind = "GPU memory in tensors" if self._device.type == "cuda" else "resident set"
        _logger.info("peak memory: %.0f MiB (%s)", peak_memory_mb(self._device), kind)


def peak_memory_mb(device: torch.device) -> float:
    """Returns the largest amount of memory that was used so far, in MiB.

    Args:
        device: on a GPU, the peak of memory in tensors is counted; on the CPU, the largest resident
            set of this process since its start.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB on Linux


class ProgressBar(HookBase):
    """A bar with the time that is left, for a person at a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def before_train(self) -> None:
        """Opens the bar, at the iteration where the training starts."""
        trainer = self.trainer
        self._bar = tqdm(
            total=trainer.max_iter, initial=trainer.start_iter, unit="it", desc="training", leave=False
        )

    def after_step(self) -> None:
        """Moves the bar; a resumed training ends the iteration before its first one by this, too."""
        assert self._bar is not None
        latest = self.trainer.storage.latest()
        if "total_loss" in latest:
            self._bar.set_postfix_str(f"loss {latest['total_loss'][0]:.4g}", refresh=False)
        self._bar.update(self.trainer.iter + 1 - self._bar.n)

    def after_train(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()
