"""Tracks a training with MLflow: settings, metrics by iteration, final scores; --resume continues the run.

PYTHONPATH=examples/tracking bevkd2 train --import track_mlflow --config-file ... HOOKS "[track_mlflow]"

MLflow's own variables say where to: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME. Files (file:///...) need
MLFLOW_ALLOW_FILE_STORE=true, as MLflow 3 asks for.
"""

from __future__ import annotations

import re
from typing import Any

import mlflow
import yaml
from mlflow.entities import Metric, Param, RunTag

from bevkd2.d2 import HookBase, comm, flatten_results_dict
from bevkd2.engine import HOOK_REGISTRY
from bevkd2.engine.run_folder import flat_settings

LONGEST_VALUE = 500  # characters of a parameter that every version of MLflow stores
MOST_PARAMETERS = 100  # in one call


@HOOK_REGISTRY.register()
def track_mlflow(cfg: Any, model: Any) -> HookBase | None:
    return TrackMLflow(cfg) if comm.is_main_process() else None


class TrackMLflow(HookBase):
    def __init__(self, cfg: Any) -> None:
        self.settings, self.name = yaml.safe_load(cfg.dump()), cfg.OUTPUT_DIR
        self.period = cfg.TEST.PRINT_PERIOD
        self.client = mlflow.MlflowClient()
        self.run_id: str | None = None
        self.written = -1

    def before_train(self) -> None:
        if self.run_id is None:
            with mlflow.start_run(run_name=self.name) as run:
                self.run_id = run.info.run_id
        self.client.set_terminated(self.run_id, "RUNNING")
        self.written = self.trainer.start_iter - 2  # a resumed training may evaluate that iteration again
        values = [Param(key, str(value)[:LONGEST_VALUE]) for key, value in flat_settings(self.settings)]
        known = self.client.get_run(self.run_id).data.params  # MLflow refuses another value on resuming
        values = [value for value in values if value.key not in known]
        for start in range(0, len(values), MOST_PARAMETERS):
            self.client.log_batch(self.run_id, params=values[start : start + MOST_PARAMETERS])

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0:
            self.log_new()

    def after_train(self) -> None:
        if self.run_id is None:
            return  # the training failed before it began
        self.log_new()
        ended = self.trainer.iter + 1 >= self.trainer.max_iter
        if ended:
            scores = flatten_results_dict(self.trainer.latest_results)
            metrics = [metric(f"final/{key}", value, self.trainer.iter) for key, value in scores.items()]
            self.client.log_batch(self.run_id, metrics=metrics, tags=[RunTag("finished", "true")])
        self.client.set_terminated(self.run_id, "FINISHED" if ended else "KILLED")

    def log_new(self) -> None:
        """Logs the scalars that are newer than the last ones."""
        latest = self.trainer.storage.latest()
        new = {key: (value, step) for key, (value, step) in latest.items() if step > self.written}
        self.client.log_batch(self.run_id, metrics=[metric(key, *pair) for key, pair in new.items()])
        self.written = max((step for _, step in new.values()), default=self.written)

    def state_dict(self) -> dict[str, Any]:
        return {"run_id": self.run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.run_id = state["run_id"]


def metric(key: str, value: float, step: int) -> Metric:
    return Metric(re.sub(r"[^\w\-. :/]", "_", key), float(value), timestamp=0, step=step)
