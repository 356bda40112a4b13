"""The hooks of a distillation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from bevkd2.d2 import HookBase, TrainerBase
from bevkd2.engine.hooks import EvaluateTeacher, PeakMemory, ProgressBar, VerifyInherited, peak_memory_mb


class Loop(TrainerBase):
    def run_step(self) -> None:
        self.storage.put_scalar("total_loss", 0.5)


class Inheriting:
    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.seen: list[int] = []

    def verify_inherited(self) -> None:
        self.seen.append(self.loop.iter)


def run(hook: HookBase, loop: Loop, iterations: int = 7, start: int = 0) -> dict[str, Any]:
    loop.register_hooks([hook])
    loop.train(start, iterations)
    return loop.storage.latest()


def test_inherited_parameters_are_verified_at_every_period_and_at_both_ends() -> None:
    loop = Loop()
    model = Inheriting(loop)
    run(VerifyInherited(model, (3, 2, 0)), loop)
    assert model.seen == [0, 1, 2, 3, 5, 6]


def test_teacher_is_scored_before_the_first_step_and_not_on_resume() -> None:
    calls = []

    def evaluate() -> dict[str, Any]:
        calls.append(1)
        return {"bbox": {"NDS": 0.5}}

    assert run(EvaluateTeacher(evaluate), Loop())["teacher/bbox/NDS"] == (0.5, 0)
    assert "teacher/bbox/NDS" not in run(EvaluateTeacher(evaluate), Loop(), start=3)
    assert len(calls) == 1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_peak_memory_is_stored_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    cpu = torch.device("cpu")
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    assert resident * 0.95 <= peak_memory_mb(cpu) < resident * 100
    with caplog.at_level("INFO"):
        latest = run(PeakMemory(cpu, 5), Loop())
    assert latest["max_mem_mb"] == (pytest.approx(peak_memory_mb(cpu), rel=0.1), 6)
    assert "MiB (resident set)" in caplog.text


def test_progress_bar_ends_at_the_last_iteration(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar()
    run(bar, Loop(), start=2)
    assert bar._bar is not None and bar._bar.n == 7 and bar._bar.initial == 2

    class Resumed(Loop):
        """Ends the iteration before its first one, as a DistillTrainer does."""

        def before_train(self) -> None:
            super().before_train()
            self.iter = self.start_iter - 1
            self.after_step()

    run(resumed := ProgressBar(), Resumed(), start=2)
    assert resumed._bar is not None and resumed._bar.n == 7
    assert "training" in capsys.readouterr().err
