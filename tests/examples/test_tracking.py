"""examples/tracking: what a tracker has of a training that was stopped and resumed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bevkd2.d2 import build_model
from bevkd2.engine import HOOK_REGISTRY, train
from tests.docs.pages import ROOT
from tests.engine.test_build import Interrupt, toy_evaluate
from tests.engine.toys import build_toy_loader, toy_cfg


@pytest.fixture(scope="module")
def mlflow() -> Iterator[Any]:
    module = pytest.importorskip("mlflow", reason="MLflow is not installed (pip install mlflow-skinny)")
    load("track_mlflow")
    return module


def load(name: str) -> Any:
    """Imports a file of the examples, which registers its hook."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / "tracking" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(folder: Path, hook: str, loader: Any = build_toy_loader, resume: bool = False) -> Any:
    cfg = toy_cfg(folder, "TEST.EVAL_PERIOD", 2, "SOLVER.BASE_LR", 0.04)
    cfg.HOOKS = [hook]
    return train(cfg, build_model(cfg), resume=resume, build_loader=loader, evaluate=toy_evaluate)


def runs(mlflow: Any) -> list[Any]:
    client = mlflow.MlflowClient()
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def test_mlflow_has_parameters_metrics_and_scores_of_one_resumed_run(
    mlflow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", "track_mlflow", Interrupt)
    (stopped,) = runs(mlflow)
    assert stopped.info.status == "KILLED" and "finished" not in stopped.data.tags
    results = run(tmp_path / "run", "track_mlflow", resume=True)
    (found,) = runs(mlflow)
    assert found.info.run_id == stopped.info.run_id and found.info.status == "FINISHED"
    assert found.data.params["SOLVER.BASE_LR"] == "0.04" and "MODEL.BACKBONE.NAME" in found.data.params
    assert found.data.metrics["final/toy/score"] == pytest.approx(results["toy"]["score"])
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "total_loss")
    assert {entry.step for entry in history} == set(range(6))
    scores = mlflow.MlflowClient().get_metric_history(found.info.run_id, "toy/count")
    assert {entry.step for entry in scores} >= {1, 3} and all(entry.value == 6 for entry in scores)


@pytest.mark.usefixtures("mlflow")
def test_other_processes_track_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bevkd2.d2.comm.is_main_process", lambda: False)
    assert HOOK_REGISTRY.get("track_mlflow")(toy_cfg(tmp_path), None) is None


def test_wandb_continues_the_same_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="Weights & Biases is not installed (pip install wandb)")
    load("track_wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", "track_wandb", Interrupt)
    run(tmp_path / "run", "track_wandb", resume=True)
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({path.name for path in files}) == 1  # run-<id>.wandb
    for path in files:  # records of Protocol Buffers, one after the other; W&B has no public reader
        content = path.read_bytes()
        assert b"total_loss" in content and b"BASE_LR" in content and b"toy/score" in content
