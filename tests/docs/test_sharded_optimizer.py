"""The script of docs/training_options.md trains in two processes as bevkd2's own trainer does."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch.multiprocessing.spawn import start_processes

from bevkd2.d2 import build_model, comm
from bevkd2.engine import build_trainer, resolve_solver
from tests.docs.pages import ROOT, blocks
from tests.engine.toys import build_toy_loader, flat, toy_cfg
from tests.limits import PROGRAM_SECONDS

PROCESSES = 2


def script() -> dict[str, Any]:
    """What the page's script defines."""
    (text,) = [
        text for _, text in blocks(ROOT / "docs/training_options.md", "python") if "# sharded.py" in text
    ]
    names: dict[str, Any] = {"__name__": "sharded"}
    exec(compile(text, "sharded.py", "exec"), names)
    return names


def train_both(rank: int, folder: Path) -> None:
    """In one of the processes: saves the weights of both trainings, and who has how many states."""
    torch.set_num_threads(1)  # the threads of the parent are not forked
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=PROGRAM_SECONDS),
    )
    comm.create_local_process_group(PROCESSES)
    cfg = toy_cfg(folder / "run")
    torch.manual_seed(0)
    plain, sharded = build_model(cfg), build_model(cfg)
    sharded.load_state_dict(plain.state_dict())
    start = flat(plain).clone()
    build_trainer(cfg, plain, build_loader=build_toy_loader, evaluate=lambda *_: {}).train(
        0, cfg.SOLVER.MAX_ITER
    )
    trainer = script()["train_sharded"](resolve_solver(cfg), sharded, build_toy_loader)
    states = comm.all_gather(len(trainer.optimizer.optim.state))
    if rank == 0:
        weights = {"start": start, "plain": flat(plain), "sharded": flat(sharded)}
        torch.save({**weights, "states": states}, folder / "found.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated:FutureWarning")
def test_a_sharded_optimizer_trains_the_same_weights(tmp_path: Path) -> None:
    start_processes(train_both, (tmp_path,), nprocs=PROCESSES, start_method="fork")
    found = torch.load(tmp_path / "found.pt")
    assert torch.equal(found["sharded"], found["plain"]) and not torch.equal(found["plain"], found["start"])
    trained = sum(parameter.requires_grad for parameter in build_model(toy_cfg(tmp_path)).parameters())
    assert sum(found["states"]) == trained and min(found["states"]) > 0
