"""A long training: resident memory and open files stay as they are, by means over tenths of the samples."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from tests.reliability.families import FAMILIES
from tests.reliability.jobs import Job
from tests.reliability.moments import count_rows
from tests.reliability.report import Row

FAMILY = FAMILIES["PGD"]
SHARE = 0.02  # by which memory may grow
FILES = 1.0  # by which the mean number of open files may grow: batches on their way from workers have some


def prove(
    place: Path, iterations: int = 5000, since: int = 500, workers: Sequence[int] = (0, 2)
) -> list[Row]:
    """Trains that long with each number of workers, and looks at every process ten times a second."""
    FAMILY.prepare(place)
    row = Row(f"{iterations} iterations: resident memory within 2 %, no more open files, from {since} on")
    for number in workers:
        output = place / f"long_{number}"
        options = ("SOLVER.MAX_ITER", iterations, "SOLVER.CHECKPOINT_PERIOD", 10**6, "TEST.EVAL_PERIOD", 0)
        job = Job(
            FAMILY.words(place, output, *options, "DATALOADER.NUM_WORKERS", number, "TEST.PRINT_PERIOD", 10),
            output,
        )
        samples: list[tuple[int, int]] = []
        while job.running() and count_rows(output) < iterations // 10 - 1:  # before the last evaluation
            if count_rows(output) >= since // 10 and len(job.session()) == 1 + number:
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
        row.check(f"{number} workers, {size}", problems)
    return [row]


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
