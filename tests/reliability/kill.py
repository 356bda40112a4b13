"""SIGKILL at random moments; what is resumed ends as if it had not been killed."""

from __future__ import annotations

import random
from pathlib import Path

from tests.reliability.families import FAMILIES, Family
from tests.reliability.jobs import Job, differences, run
from tests.reliability.moments import PHASES, Moments
from tests.reliability.report import Row


def prove(place: Path, kills: int = 20, names: tuple[str, ...] = tuple(FAMILIES)) -> list[Row]:
    """Kills each family's distillation this often; the moments are drawn from a fixed seed."""
    return [_prove(FAMILIES[name], place, kills) for name in names]


def _prove(family: Family, place: Path, kills: int) -> Row:
    row = Row(f"kill -9 while loading, training, saving, evaluating: {family.name} distillation, 2 workers")
    family.prepare(place)
    straight = place / family.name / "straight_1"
    moments, rng = Moments.measured(family, place, straight), random.Random(f"kill {family.name}")
    jobs: list[Job] = []
    while row.cases < kills:
        output = place / family.name / f"killed_{len(jobs)}"
        job = Job(family.words(place, output), output)
        jobs.append(job)
        moment = moments.wait(PHASES[row.cases % len(PHASES)], job, rng)
        if not job.running():
            continue  # it ended before the moment came: another one is drawn
        job.kill()
        job.wait()
        saved = output / "last_checkpoint"
        last = saved.read_text() if saved.is_file() else "no checkpoint"
        resumed = run(family.words(place, output, flags=("--resume",)), output)
        problems = differences(straight, output) if resumed.status == 0 else [resumed.text()[-500:]]
        row.check(f"{row.cases + 1}, {moment}, resumed from {last}", problems)
    orphans = [job.pid for job in jobs if not job.alone_after(10.0)]
    if orphans:
        row.check("loader workers end too", [f"those of {orphans} run"])
    return row
