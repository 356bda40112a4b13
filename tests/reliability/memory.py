"""A long training: resident memory and open files stay as they are, by means over tenths of the samples."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.reliability.families import FAMILIES, Family
from tests.reliability.jobs import Job
from tests.reliability.moments import count_rows
from tests.reliability.report import Row

SHARE = 0.02  # by which memory may grow
FILES = 1.0  # by which the mean number of open files may grow: batches on their way from workers have some
PERIOD = 50  # iterations between two evaluations, and between two checkpoints, of the trainings with both
_PRINTED = 10  # iterations of a row of metrics.json


def prove(
    place: Path,
    iterations: int = 5000,
    since: int = 500,
    names: Sequence[str] = tuple(FAMILIES),
    workers: Sequence[int] = (0, 2),
    interruptions: Sequence[bool] = (False, True),
) -> list[Row]:
    """Trains that long, and looks at every process ten times a second.

    Args:
        place: where the trainings are kept.
        iterations: of each training.
        since: the first iteration that counts.
        names: of the families.
        workers: numbers of loader workers.
        interruptions: with checkpoints and evaluations every ``PERIOD`` iterations, or without.
    """
    found = []
    for interrupted in interruptions:
        what = f"evaluations and checkpoints every {PERIOD}" if interrupted else "steps alone"
        row = Row(
            f"{iterations} iterations, {what}: resident memory within 2 %, no more open files, "
            f"from {since} on"
        )
        found.append(row)
        for name in names:
            family = FAMILIES[name]
            family.prepare(place)
            for number in workers:
                output = place / name / f"long_{number}_{interrupted}"
                _train(row, family, place, output, number, iterations, since, PERIOD if interrupted else 0)
    return found


def _train(
    row: Row,
    family: Family,
    place: Path,
    output: Path,
    workers: int,
    iterations: int,
    since: int,
    period: int,
) -> None:
    """Runs one training; ``period`` 0: no evaluation and no checkpoint but at its end."""
    options: tuple[Any, ...] = (
        *("SOLVER.MAX_ITER", iterations, "SOLVER.CHECKPOINT_PERIOD", period or 10**6),
        *("TEST.EVAL_PERIOD", period, "TEST.PRINT_PERIOD", _PRINTED, "DATALOADER.NUM_WORKERS", workers),
    )
    job = Job(family.words(place, output, *options), output)
    samples: list[tuple[int, int]] = []
    while job.running() and count_rows(output) < iterations // _PRINTED - 1:  # before the last evaluation
        # Not while processes come and go: an evaluation has loader workers of its own.
        if count_rows(output) >= since // _PRINTED and len(job.session()) == 1 + workers:
            samples.append(_sample(job))
        time.sleep(0.1)
    status = job.wait()
    tenth = max(1, len(samples) // 10)
    memory, files = zip(*samples, strict=True)
    begin, end = fmean(memory[:tenth]), fmean(memory[-tenth:])
    opened, open_at_end = fmean(files[:tenth]), fmean(files[-tenth:])
    growth = end / begin - 1
    problems = [] if status == 0 else [f"exit status {status}: {job.text()[-500:]}"]
    problems += [] if growth <= SHARE else [f"memory grows by {100 * growth:.1f} %"]
    problems += [] if open_at_end <= opened + FILES else ["more files are open at the end"]
    size = f"{begin / 2**10:.0f} to {end / 2**10:.0f} MiB, {opened:.1f} to {open_at_end:.1f} open files"
    row.check(f"{family.name}, {workers} workers, {size}", problems)


def _sample(job: Job) -> tuple[int, int]:
    """Resident memory of all processes (KiB), and their open files."""
    memory = files = 0
    for pid in job.session():
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            memory += int(status.split("VmRSS:")[1].split()[0])
            files += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except (OSError, IndexError):  # it has just ended
            continue
    return memory, files
