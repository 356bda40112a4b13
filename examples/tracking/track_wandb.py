"""Tracks a training with Weights & Biases: settings, metrics by iteration; --resume continues the run.

PYTHONPATH=examples/tracking bevkd2 train --import track_wandb --config-file ... HOOKS "[track_wandb]"

W&B's own variables say where to: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline.
"""

from __future__ import annotations

from typing import Any

import wandb
import yaml

from bevkd2.d2 import HookBase, comm, flatten_results_dict
from bevkd2.engine import HOOK_REGISTRY


@HOOK_REGISTRY.register()
def track_wandb(cfg: Any, model: Any) -> HookBase | None:
    return TrackWandb(cfg) if comm.is_main_process() else None


class TrackWandb(HookBase):
    def __init__(self, cfg: Any) -> None:
        self.settings, self.folder = yaml.safe_load(cfg.dump()), cfg.OUTPUT_DIR
        self.period = cfg.TEST.PRINT_PERIOD
        self.run_id: str | None = None
        self.run: Any = None

    def before_train(self) -> None:
        self.written = self.trainer.start_iter - 2  # a resumed training may evaluate that iteration again
        self.run = wandb.init(
            id=self.run_id, resume="allow", config=self.settings, dir=self.folder, name=self.folder
        )
        self.run_id = self.run.id

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0:
            self.log_new()

    def after_train(self) -> None:
        if self.run is None:
            return  # the training failed before it began
        self.log_new()
        ended = self.trainer.iter + 1 >= self.trainer.max_iter
        if ended:
            self.run.summary.update(flatten_results_dict(self.trainer.latest_results))
        self.run.finish(exit_code=0 if ended else 1)

    def log_new(self) -> None:
        """Logs the scalars that are newer than the last ones, iteration by iteration."""
        rows: dict[int, dict[str, float]] = {}
        for key, (value, step) in self.trainer.storage.latest().items():
            if step > self.written:
                rows.setdefault(step, {})[key] = value
        for step in sorted(rows):
            self.run.log(rows[step], step=step)
        self.written = max(rows, default=self.written)

    def state_dict(self) -> dict[str, Any]:
        return {"run_id": self.run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.run_id = state["run_id"]
