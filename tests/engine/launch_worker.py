"""What each process of test_launch.py runs: trains the toy model and reports what the process saw."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from bevkd2.config import CfgNode
from bevkd2.d2 import HookBase, build_model, comm
from bevkd2.engine import (
    DistillTrainer,
    build_optimizer,
    build_trainer,
    create_ddp_model,
    setup,
    write_config,
)
from bevkd2.engine.evaluator import evaluate
from tests.engine.toys import ToyEvaluator, ToyLoader, build_toy_loader, build_toy_test_loader, flat


class Gradient(HookBase):
    """Keeps the first step's gradient, and a random number that the step began with."""

    def before_step(self) -> None:
        self.trainer.model.register_forward_pre_hook(self._draw)

    def _draw(self, module: Any, args: Any) -> None:
        self.draw = torch.rand(1, generator=torch.default_generator.clone_state()).item()

    def after_backward(self) -> None:
        if self.trainer.iter == 0:
            module = self.trainer.model.module if comm.get_world_size() > 1 else self.trainer.model
            self.gradient = module.head.weight.grad.flatten().tolist()


def main(args: argparse.Namespace) -> None:
    cfg = setup(args)
    write_config(cfg)
    draw = torch.rand(1).item()
    model = build_model(cfg)

    def score(cfg: CfgNode, model: Any) -> Any:
        return evaluate(cfg, model, build_loader=build_toy_test_loader, build_evaluator=ToyEvaluator)

    trainer = build_trainer(cfg, model, build_loader=build_toy_loader, evaluate=score)
    gradient = Gradient()
    trainer.register_hooks([gradient])
    trainer.train(0, cfg.SOLVER.MAX_ITER)
    model.register_buffer("statistics", torch.tensor([float(comm.get_rank())]))
    score(cfg, model)
    report = {
        "seed": cfg.SEED,
        "setup_draw": draw,
        "step_draw": gradient.draw,
        "gradient": gradient.gradient,
        "weights": flat(model).tolist(),
        "statistics": model.statistics.item(),
        "threads": torch.get_num_threads(),
        "stopped_by": poisoned(cfg),
        "latest": {name: value for name, (value, _) in trainer.storage.latest().items()},
    }
    (Path(cfg.OUTPUT_DIR) / f"report{comm.get_rank()}.json").write_text(json.dumps(report))


def poisoned(cfg: CfgNode) -> str:
    """Trains on a batch that is NaN on rank 0 alone; returns what stopped this process."""
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    trainer = DistillTrainer(
        create_ddp_model(model), lambda start: ToyLoader(cfg, start, poison=1), optimizer
    )
    before = flat(model)
    try:
        trainer.train(1, 3)
    except FloatingPointError as error:
        assert torch.equal(before, flat(model))
        return type(error).__name__
    return "nothing"
