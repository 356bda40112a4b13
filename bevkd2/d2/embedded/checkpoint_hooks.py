"""The hooks that save the model."""

import logging
import math
from typing import Any

from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer

from bevkd2.d2.embedded.train_loop import HookBase, due_before_end, succeeded

_logger = logging.getLogger("detectron2.engine.hooks")


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's PeriodicCheckpointer as a hook: ``model_0004999.pth``, ..., ``model_final.pth``."""

    def before_train(self) -> None:
        """Learns when the training ends."""
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        """Saves every ``period`` iterations."""
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves the model whenever a metric is the best so far; goes after the hook that evaluates."""

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        """Sets what to watch.

        Args:
            eval_period: the EvalHook's period.
            checkpointer: saves the model.
            val_metric: name of the scalar in the storage, e.g. ``bbox/NDS``.
            mode: ``max`` or ``min``.
            file_prefix: name of the checkpoint.

        Raises:
            AssertionError: the mode is not one of the two.
        """
        if mode not in ("max", "min"):
            raise AssertionError(f"BestCheckpointer: mode is '{mode}'; 'max' and 'min' are the known ones")
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._sign = 1.0 if mode == "max" else -1.0
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def after_step(self) -> None:
        """Checks the metric if the EvalHook has just run."""
        if due_before_end(self.trainer, self._period):
            self._check()

    def after_train(self) -> None:
        """Checks the last evaluation, unless the training failed."""
        if succeeded(self.trainer):
            self._check()

    def _check(self) -> None:
        if self._val_metric not in self.trainer.storage.latest():
            _logger.warning(
                f"Given val metric {self._val_metric} does not seem to be computed/stored. "
                "Will not be checkpointing based on it."
            )
            return
        metric, iteration = self.trainer.storage.latest()[self._val_metric]
        best, best_iter = self.best_metric, self.best_iter
        if not math.isfinite(metric) or (best is not None and self._sign * (metric - best) <= 0):
            _logger.info(
                f"Not saving as latest eval score for {self._val_metric} is {metric:0.5f}, "
                f"not better than best score {best} @ iteration {best_iter}."
            )
            return
        self.best_metric, self.best_iter = metric, iteration  # first: the checkpoint holds this hook's state
        self._checkpointer.save(self._file_prefix, iteration=iteration)
        if best is None:
            _logger.info(f"Saved first model at {metric:0.5f} @ {iteration} steps")
        else:
            _logger.info(
                f"Saved best model as latest eval score for {self._val_metric} is {metric:0.5f}, "
                f"better than last best score {best:0.5f} @ iteration {best_iter}."
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns the best so far, so that a resumed run does not overwrite a better model."""
        if self.best_metric is None:
            return {}
        return {"best_metric": self.best_metric, "best_iter": self.best_iter, "metric": self._val_metric}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned; the best of another metric is none of this one."""
        metric = state_dict.get("metric", self._val_metric)  # older states do not name it
        if metric != self._val_metric:
            _logger.warning(
                f"The best score so far is of {metric}; that of {self._val_metric} begins with the next "
                "evaluation."
            )
            return
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]
