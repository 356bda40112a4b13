"""Learning-rate schedules over fvcore's ParamSchedulers."""

from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler


class WarmupParamScheduler(CompositeParamScheduler):
    """Puts a warm-up in front of another schedule."""

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ):
        """Compose the two.

        Args:
            scheduler: the schedule after the warm-up.
            warmup_factor: the first value, as a fraction of the schedule's own first value.
            warmup_length: the warm-up's share of the training, in [0, 1].
            warmup_method: ``linear`` (rise to the schedule's value) or ``constant``.
            rescale_interval: squeeze the whole schedule into what is left after the warm-up, where
                otherwise its first ``warmup_length`` is replaced.

        Raises:
            ValueError: the method is not one of the two.
        """
        start = warmup_factor * scheduler(0.0)
        end = scheduler(0.0 if rescale_interval else warmup_length)
        if warmup_method == "linear":
            warmup: ParamScheduler = LinearParamScheduler(start, end)
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(start)
        else:
            raise ValueError(
                f"Unknown warmup method: {warmup_method}; 'linear' and 'constant' are the known ones"
            )
        super().__init__(
            [warmup, scheduler],
            lengths=[warmup_length, 1 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )


class LRMultiplier(LRScheduler):
    """Multiplies every parameter group's initial learning rate by one fvcore schedule."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        multiplier: ParamScheduler,
        max_iter: int,
        last_iter: int = -1,
    ):
        """Sets the learning rates for the step after ``last_iter``.

        Args:
            optimizer: the optimizer whose groups are driven.
            multiplier: the factor as a function of training progress in [0, 1].
            max_iter: iterations of the whole training.
            last_iter: the last iteration done; -1 at the start.

        Raises:
            ValueError: the multiplier is not a ParamScheduler.
        """
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"LRMultiplier: multiplier must be a fvcore ParamScheduler, not {multiplier!r}")
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """Returns initial learning rates and position; the schedule itself has no state."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float | torch.Tensor]:
        """Returns the learning rate of each parameter group at the current position."""
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]
