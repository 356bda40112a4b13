"""metrics.json of a resumed training is that of one without an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bevkd2.checkpoint import load_file, save_file
from bevkd2.d2 import PROVIDER, HookBase, build_model
from bevkd2.engine import train
from bevkd2.engine.metrics import read_metrics
from tests.engine.test_build import Interrupt, run, toy_evaluate
from tests.engine.toys import build_toy_loader, flat, toy_cfg
from tests.reliability.rows import rows

# Of 12 iterations: checkpoints after 3, 7 and 11, evaluations after 2, 5, 8 and 11, rows after 4 and 9.
OPTIONS = (
    *("SOLVER.MAX_ITER", 12, "SOLVER.CHECKPOINT_PERIOD", 4, "TEST.EVAL_PERIOD", 3, "TEST.PRINT_PERIOD", 5),
    *("SOLVER.CHECKPOINTS_TO_KEEP", 0),
)
COINCIDING = (*OPTIONS, "SOLVER.CHECKPOINT_PERIOD", 3, "TEST.PRINT_PERIOD", 1)


def interrupted(cfg: Any, evaluation: int) -> None:
    """Trains until an evaluation, in which it ends as by a kill."""
    calls: list[int] = []

    def evaluate(cfg: Any, model: Any) -> Any:
        calls.append(1)
        if len(calls) == evaluation:
            raise KeyboardInterrupt
        return toy_evaluate(cfg, model)

    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, build_model(cfg), build_loader=build_toy_loader, evaluate=evaluate)


@pytest.mark.parametrize("options", [OPTIONS, COINCIDING])
@pytest.mark.parametrize("evaluation", [1, 2, 3, 4])
def test_a_run_that_ends_in_an_evaluation(tmp_path: Path, options: Any, evaluation: int) -> None:
    straight = run(toy_cfg(tmp_path / "straight", *options))
    cfg = toy_cfg(tmp_path / "stopped", *options)
    interrupted(cfg, evaluation)
    assert torch.equal(flat(straight), flat(run(cfg, resume=True)))
    found = rows(tmp_path / "stopped")
    assert found == rows(tmp_path / "straight")
    assert len({row["iteration"] for row in found}) == len(found)
    if PROVIDER != "embedded":
        return  # Detectron2's BestCheckpointer keeps no state; the log warns
    best = [load_file(tmp_path / folder / "model_best.pth") for folder in ("straight", "stopped")]
    assert best[0]["iteration"] == best[1]["iteration"]
    assert torch.equal(best[0]["model"]["head.weight"], best[1]["model"]["head.weight"])


def test_a_line_that_a_kill_left_incomplete_is_removed(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        run(cfg, build_loader=Interrupt)
    with (tmp_path / "stopped" / "metrics.json").open("a") as file:
        file.write('{"iteration": 4, "total_lo')
    run(cfg, resume=True)
    run(toy_cfg(tmp_path / "straight"))
    assert rows(tmp_path / "stopped") == rows(tmp_path / "straight")


class CountsSteps(HookBase):
    """A hook whose state changes in after_step, behind the checkpoint."""

    def __init__(self) -> None:
        self.steps = 0

    def after_step(self) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def test_the_hooks_behind_the_checkpoint_run_once_for_every_iteration(tmp_path: Path) -> None:
    cfg, counts = toy_cfg(tmp_path), []
    for resume in (False, True):
        hook = CountsSteps()
        try:
            train(
                *(cfg, build_model(cfg)),
                resume=resume,
                build_loader=build_toy_loader if resume else Interrupt,
                evaluate=toy_evaluate,
                extra_hooks=[hook],
            )
        except KeyboardInterrupt:
            assert not resume
        counts.append(hook.steps)
    assert counts == [4, 6]


def test_a_checkpoint_without_scalars_is_resumed(tmp_path: Path) -> None:
    """One of an earlier version: its own iteration is taken as done."""
    cfg = toy_cfg(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(cfg, build_loader=Interrupt)
    path = tmp_path / "model_0000002.pth"
    content = load_file(path)
    del content["trainer"]["hooks"]["MetricsHistory"]
    save_file(content, path)
    run(cfg, resume=True)
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines][:6] == list(range(6))


def test_scalars_written_last_count_and_torn_lines_are_named(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    lines = ['{"iteration": 1, "bbox/mAP": 0.1, "loss_a": 1}', '{"iteration": 3, "bbox/m', "", "[1]"]
    lines += ['{"iteration": 1, "bbox/mAP": 0.2}', '{"iteration": 0, "loss_a": 2}', '{"loss_a": 2}', "\ud800"]
    file.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
    found = read_metrics(file)
    assert list(found.rows) == [0, 1]
    assert found.rows[1] == {"iteration": 1, "bbox/mAP": 0.2, "loss_a": 1}
    assert found.torn == (2, 4, 7, 8)
