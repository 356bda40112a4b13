"""Several processes: the same gradients, every sample scored once, and none left when one dies."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bevkd2.cli import train
from bevkd2.cli.console import run_cli
from bevkd2.config import CfgNode
from bevkd2.d2 import HookBase, comm
from bevkd2.engine import HOOK_REGISTRY
from tests.distill.methods import ddp_worker
from tests.reliability.families import FAMILIES
from tests.reliability.jobs import Job, children, differences, finished, run, several
from tests.reliability.moments import Moments
from tests.reliability.report import Row

DEATH_SECONDS = 60.0


def prove(
    place: Path,
    gradients: Sequence[int] = (2, 4),
    evaluations: Sequence[int] = (2, 3, 5),
    names: Sequence[str] = tuple(FAMILIES),
) -> list[Row]:
    """Every part with these numbers of processes."""
    return [
        *(_gradients(place, count) for count in gradients),
        _evaluation(place, names, evaluations),
        _death(place, names),
    ]


def _gradients(place: Path, count: int) -> Row:
    row = Row(f"{count} gloo processes: gradients of one process with the joint batch, rel. 1e-9, float64")
    for case, problems in ddp_worker.compare(place / f"gradients_{count}", list(range(1, count + 1))).items():
        row.check(case, problems)
    return row


def _evaluation(place: Path, names: Sequence[str], counts: Sequence[int]) -> Row:
    row = Row("evaluation in several processes, uneven scenes, more processes than scenes: the same files")
    for name in names:
        family = FAMILIES[name]
        weights = finished(family, place) / "model_final.pth"
        folders = []
        for count in (1, *counts):
            folders.append(place / name / f"scored_{count}")
            flags = ("--eval-only", *several(count))
            job = run(family.words(place, folders[-1], "MODEL.WEIGHTS", weights, flags=flags), folders[-1])
            problems = [] if job.status == 0 else [job.text()[-800:]]
            if count > 1:
                row.check(f"{name}, {count} processes", problems + differences(folders[0], folders[-1]))
    return row


class DiesOnRankOne(HookBase):
    """Raises on the second rank, and writes when."""

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self._file = Path(cfg.OUTPUT_DIR, "raised")

    def after_backward(self) -> None:
        if self.trainer.iter == 3 and comm.get_rank() == 1:
            self._file.write_text(str(time.monotonic()))  # one clock for all processes of a machine
            raise ArithmeticError("rank 1 has died")


def _with_death(words: list[str]) -> int:
    HOOK_REGISTRY.register()(DiesOnRankOne)
    return run_cli(train.main, words)


def _death(place: Path, names: Sequence[str]) -> Row:
    row = Row("a rank is killed, or raises: the others end within 60 s, its own error is the message")
    for name in names:
        for raises in (True, False):
            family = FAMILIES[name]
            family.prepare(place)
            output = place / name / f"dies_{raises}"
            options: tuple[Any, ...] = ("HOOKS", ["DiesOnRankOne"]) if raises else ()
            words = family.words(place, output, *options, flags=several(2))
            job = Job(words, output, program=_with_death)
            if not raises:
                Moments({"step": 0.1}).wait("step", job, random.Random(0))
                os.kill(children(job.pid)[1], signal.SIGKILL)
            killed, status = time.monotonic(), job.wait()
            died = float((output / "raised").read_text()) if raises else killed
            seconds = time.monotonic() - died
            last = re.split(r"^Traceback", job.text(), flags=re.MULTILINE)[-1]
            expected = "rank 1 has died" if raises else "process 1 terminated with signal SIGKILL"
            problems = [] if status == 1 else [f"exit status {status}"]
            problems += [] if expected in last else [f"the message is {job.text()[-800:]}"]
            problems += [] if seconds < DEATH_SECONDS else [f"took {seconds:.1f} s"]
            problems += [] if job.alone_after(10.0) else ["processes are left"]
            row.check(f"{name}, {'raises' if raises else 'killed'}, {seconds:.1f} s", problems)
    return row
