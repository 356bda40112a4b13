"""Hooks from outside: given to train(), or registered by a plugin and named in HOOKS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bevkd2.checkpoint import load_file
from bevkd2.d2 import HookBase, build_model
from bevkd2.engine import HOOK_REGISTRY, build_trainer, train
from tests.engine.test_build import toy_evaluate
from tests.engine.toys import build_toy_loader, toy_cfg


class Count(HookBase):
    """Counts steps, and logs the score that the evaluation of this iteration has just put there."""

    def __init__(self, cfg: Any = None, model: Any = None) -> None:
        self.steps = 0

    def before_step(self) -> None:
        self.steps += 1

    def after_step(self) -> None:
        score = self.trainer.storage.latest().get("toy/score")
        if score is not None and score[1] == self.trainer.iter:
            self.trainer.storage.put_scalar("score_seen", score[0], smoothing_hint=False)
        self.trainer.storage.put_scalar("steps_seen", self.steps, smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


@HOOK_REGISTRY.register()
class ToyCount(Count):
    """Brought by a plugin."""


@HOOK_REGISTRY.register()
def nothing_to_do(cfg: Any, model: Any) -> None:
    """Returns no hook, as one that a key of its own switches off."""


def run(cfg: Any, **kwargs: Any) -> Any:
    return train(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=toy_evaluate, **kwargs)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


@pytest.mark.parametrize("by_name", [True, False])
def test_a_hook_runs_after_the_evaluation_and_before_the_writers(tmp_path: Path, by_name: bool) -> None:
    cfg = toy_cfg(tmp_path, "TEST.EVAL_PERIOD", 2)
    if by_name:
        cfg.HOOKS = ["nothing_to_do", "ToyCount"]
        run(cfg)
    else:
        run(cfg, extra_hooks=[ToyCount()])
    found = {row["iteration"]: row for row in rows(tmp_path) if "steps_seen" in row}
    assert [found[i]["steps_seen"] for i in range(6)] == [1, 2, 3, 4, 5, 6]
    assert found[1]["score_seen"] == found[1]["toy/score"]
    assert load_file(tmp_path / "model_final.pth")["trainer"]["hooks"]["ToyCount"] == {"steps": 6}


def test_its_state_is_resumed(tmp_path: Path) -> None:
    run(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 3), extra_hooks=[ToyCount()])
    hook = ToyCount()
    run(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 6), resume=True, extra_hooks=[hook])
    assert hook.steps == 6


def test_an_unknown_hook_is_an_error(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path)
    cfg.HOOKS = ["NoSuchHook"]
    with pytest.raises(KeyError, match="NoSuchHook"):
        build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=toy_evaluate)


def test_trainer_keeps_the_latest_results(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path)
    trainer = build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=toy_evaluate)
    assert trainer.latest_results == {}
    trainer.train(trainer.start_iter, trainer.max_iter)
    assert trainer.latest_results["toy"]["count"] == 6
