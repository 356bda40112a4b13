"""The same seed twice, with one and two threads and any number of loader workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.reliability.families import FAMILIES
from tests.reliability.jobs import differences, run
from tests.reliability.report import Row


def prove(
    place: Path,
    names: Sequence[str] = tuple(FAMILIES),
    threads: Sequence[int] = (1, 2),
    workers: Sequence[int] = (0, 1, 2, 3),
) -> list[Row]:
    """Trains with every number of workers, the first number twice, and compares with the first training."""
    found = []
    for name in names:
        family = FAMILIES[name]
        family.prepare(place)
        row = Row(f"same seed twice, 1 and 2 threads, 0 to 3 workers: {name} distillation")
        for count in threads:
            first: Path | None = None
            for number in (workers[0], *workers):
                output = place / name / f"same_{count}_{number}_{first is None}"
                words = family.words(place, output, "DATALOADER.NUM_WORKERS", number)
                job = run(words, output, threads=count)
                assert job.status == 0, job.text()[-2000:]
                if first is None:
                    first = output
                else:
                    row.check(f"{count} threads, {number} workers", differences(first, output))
        found.append(row)
    return found
