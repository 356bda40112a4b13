"""SIGTERM, SIGINT and SIGUSR1: a checkpoint of the current iteration, an exit in time, an exact resume."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from bevkd2.checkpoint import load_file
from bevkd2.engine.stop import STOP_SIGNALS
from tests.reliability.families import FAMILIES, Family
from tests.reliability.jobs import Job, differences, finished, run, several
from tests.reliability.moments import PHASES, Moments
from tests.reliability.report import Row

EXIT_SECONDS = 10.0


def prove(
    place: Path,
    names: Sequence[str] = tuple(FAMILIES),
    numbers: Sequence[int] = STOP_SIGNALS,
    processes: Sequence[int] = (1, 2),
    phases: Sequence[str] = PHASES,
) -> list[Row]:
    """Signals each family's distillation in each phase, the first process alone and all of the session."""
    found, rng = [], random.Random("signals")
    for count in processes:
        word = "1 process" if count == 1 else f"{count} processes"
        row = Row(
            f"SIGTERM, SIGINT, SIGUSR1 while loading, training, saving, evaluating: {word}, 2 workers each"
        )
        found.append(row)
        for name in names:
            family = FAMILIES[name]
            family.prepare(place)
            moments = Moments.measured(family, place, place / name / f"measured_{count}")
            straight = finished(family, place, count)
            for number in numbers:
                for phase in phases:
                    for whom in ("the first process", "all processes"):
                        output = place / name / f"stopped_{count}_{row.cases}"
                        job = Job(family.words(place, output, flags=several(count)), output)
                        moment = moments.wait(phase, job, rng)
                        case = f"{name}, {signal.Signals(number).name} to {whom}, {moment}"
                        problems = _stop(
                            job,
                            number,
                            everyone=whom == "all processes",
                            starting=phase == "loading" and count > 1,
                        )
                        resumed = run(
                            family.words(place, output, flags=("--resume", *several(count))), output
                        )
                        problems += (
                            differences(straight, output) if resumed.status == 0 else [resumed.text()[-500:]]
                        )
                        row.check(case, problems)
        if count == 1:
            _second(row, FAMILIES[names[-1]], place, rng)
    return found


def _stop(job: Job, number: int, *, everyone: bool, starting: bool) -> list[str]:
    """Sends the signal; returns what is wrong with how the job ends.

    Args:
        job: the training.
        number: of the signal.
        everyone: all of its processes get it, else the first alone.
        starting: one of several processes may not have begun to train: then there is nothing to save.
    """
    start = time.monotonic()
    (job.kill_all if everyone else job.kill)(number)
    status = job.wait()
    seconds = time.monotonic() - start
    named = re.findall(r"ending after iteration (\d+), which is saved", job.log())
    problems = [f"prints a traceback: {job.text()[-500:]}"] if "Traceback" in job.text() else []
    complete = not named and (job.output / "model_final.pth").is_file()
    if complete and status in (0, -number):
        return []  # it came behind the last evaluation: nothing was left to be done
    if complete and status == 128 + number:  # the launcher's
        return problems
    last = job.output / "last_checkpoint"
    unsaved = starting and not named and not last.is_file()
    if status != 128 + number:
        problems.append(f"exit status {status}, not {128 + number}: {job.text()[-500:]}")
    if seconds > EXIT_SECONDS:
        problems.append(f"took {seconds:.1f} s")
    if not job.alone_after(1.0):
        problems.append(f"{len(job.session())} processes are left")
    saved = load_file(job.output / last.read_text())["iteration"] if last.is_file() else None
    if named != [str(saved)] and not unsaved:
        problems.append(f"the log names the iterations {named}, the checkpoint has {saved}")
    return problems


def _second(row: Row, family: Family, place: Path, rng: random.Random) -> None:
    """A second SIGINT ends the process at once."""
    output = place / family.name / "twice"
    job = Job(family.words(place, output), output)
    Moments({"step": 0.01}).wait("step", job, rng)
    job.kill(signal.SIGINT)
    time.sleep(0.001)
    job.kill(signal.SIGINT)
    start, status = time.monotonic(), job.wait()
    seconds = time.monotonic() - start
    problems = [] if status in (-signal.SIGINT, 128 + signal.SIGINT) else [f"exit status {status}"]
    problems += [] if seconds < 2.0 else [f"took {seconds:.1f} s"]
    problems += [] if job.alone_after(10.0) else ["workers are left"]
    resumed = run(family.words(place, output, flags=("--resume",)), output)
    straight = finished(family, place)
    problems += differences(straight, output) if resumed.status == 0 else [resumed.text()[-500:]]
    row.check(f"{family.name}, SIGINT twice", problems)
