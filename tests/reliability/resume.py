"""Resuming with other settings: it goes on or refuses, by the rule in docs/getting_started.md."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bevkd2.checkpoint import load_file
from tests.reliability.checkpoints import interrupted, refused, tracebacks
from tests.reliability.families import FAMILIES, ITERATIONS
from tests.reliability.jobs import Job, differences, finished, run, several
from tests.reliability.report import Row
from tests.reliability.rows import rows

FAMILY = FAMILIES["PGD"]
OTHER = FAMILIES["BEVFormer"]


def prove(place: Path) -> list[Row]:
    """Resumes an interrupted run with one other setting each."""
    FAMILY.prepare(place)
    row = Row("--resume with other MAX_ITER, BASE_LR, OPTIMIZER, processes, workers, checkpoint: by the rule")
    straight, stopped = finished(FAMILY, place), interrupted(FAMILY, place)

    def resumed(*options: Any, processes: int = 1, start: Path = stopped) -> Job:
        output = place / FAMILY.name / f"resumed_{row.cases}"
        shutil.copytree(start, output)
        return run(FAMILY.words(place, output, *options, flags=("--resume", *several(processes))), output)

    job = resumed("DATALOADER.NUM_WORKERS", 0)
    row.check("other workers: exact", _failed(job) or differences(straight, job.output))
    job = resumed("SOLVER.MAX_ITER", ITERATIONS + 4)
    row.check("more MAX_ITER: trains on", _failed(job) or _done(job.output, ITERATIONS + 4))
    job = resumed("SOLVER.MAX_ITER", 2)
    row.check("fewer MAX_ITER: evaluates, and says so", _failed(job) or _said(job, "nothing to train"))
    job = resumed("SOLVER.BASE_LR", 0.0002)
    problems = _failed(job) or _done(job.output, ITERATIONS) + _said(job, "SOLVER.BASE_LR")
    rates = [
        [r["lr"] for r in rows(folder) if r["iteration"] == ITERATIONS - 1]
        for folder in (straight, job.output)
    ]
    problems += [] if rates[1] < rates[0] else [f"learning rates {rates}"]
    row.check("other BASE_LR: applied, and said", problems)
    job = resumed(processes=2)
    row.check("2 processes for 1: trains on", _failed(job) or _done(job.output, ITERATIONS))
    job = resumed(start=interrupted(FAMILY, place, processes=2))
    row.check("1 process for 2: trains on", _failed(job) or _done(job.output, ITERATIONS))
    row.check("SGD for ADAMW: refused", refused(resumed("SOLVER.OPTIMIZER", "SGD"), "SOLVER.OPTIMIZER"))
    OTHER.prepare(place)
    row.check(
        "another model's checkpoint: refused", refused(resumed(start=interrupted(OTHER, place)), "model_0")
    )
    bare = place / FAMILY.name / "moved"
    bare.mkdir()
    name = (stopped / "last_checkpoint").read_text()
    for file in (name, "last_checkpoint"):
        shutil.copy(stopped / file, bare)
    job = resumed(start=bare)
    problems = _failed(job) or [
        p for p in differences(straight, job.output) if p.startswith("model_final.pth: ")
    ]
    row.check("the checkpoint alone, in another folder: exact", problems)
    return [row]


def _failed(job: Job) -> list[str]:
    return tracebacks(job) if job.status == 0 else [f"exit status {job.status}: {job.text()[-500:]}"]


def _said(job: Job, words: str) -> list[str]:
    return [] if words in job.text() else [f"does not say {words!r}"]


def _done(output: Path, iterations: int) -> list[str]:
    """What is missing of a training with so many iterations."""
    done = load_file(output / "model_final.pth")["iteration"] + 1
    problems = [] if done == iterations else [f"{done} iterations, not {iterations}"]
    found = [row["iteration"] for row in rows(output) if "total_loss" in row]
    expected = list(range(1, iterations, 2))
    return problems + ([] if sorted(found) == expected else [f"rows of metrics.json: {found}"])
