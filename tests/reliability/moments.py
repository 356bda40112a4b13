"""Random moments of a training, found from outside by its files."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from pathlib import Path

from tests.reliability.families import ITERATIONS, Family
from tests.reliability.jobs import Job

PHASES = ("loading", "step", "saving", "evaluation")


@dataclasses.dataclass(frozen=True)
class Moments:
    """Waits for moments in a phase; how long the phases are was measured."""

    seconds: dict[str, float]

    @classmethod
    def measured(cls, family: Family, place: Path, output: Path) -> Moments:
        """Trains once without a disturbance, and measures the phases."""
        job, seen = Job(family.words(place, output), output), dict[str, float]()
        while job.running():
            log, rows = job.log(), count_rows(output)
            for name, happened in {
                "start": "Starting training from iteration" in log,
                "row": rows >= 1,
                "second row": rows >= 2,
                "inference": "Start inference on" in log,
                "scored": "results on" in log,
            }.items():
                if happened:
                    seen.setdefault(name, time.monotonic())
            time.sleep(0.005)
        assert job.status == 0, job.text()[-3000:]
        return cls(
            {
                "loading": seen["row"] - seen["start"],
                "step": (seen["second row"] - seen["row"]) / 2,
                "evaluation": seen["scored"] - seen["inference"],
                "saving": 0.004,
            }
        )

    def wait(self, phase: str, job: Job, rng: random.Random) -> str:
        """Waits for a random moment of a phase, or for the job's end; returns how it was chosen."""
        delay = rng.uniform(0.0, self.seconds[phase])
        count, names = 0, set[str]()

        def saving() -> bool:
            names.update(path.name + str(path.stat().st_ino) for path in job.output.glob(".model_*.tmp"))
            return len(names) >= count

        if phase == "loading":
            _wait(job, lambda: "Starting training from iteration" in job.log())
        elif phase == "step":
            count = rng.randrange(1, ITERATIONS // 2)
            _wait(job, lambda: count_rows(job.output) >= count)
        elif phase == "evaluation":
            count = rng.randrange(1, 4)
            _wait(job, lambda: job.log().count("Start inference on") >= count)
        else:
            count = rng.randrange(1, 6)
            _wait(job, saving, pause=0.0005)
        time.sleep(delay)
        return f"{phase} {count} + {delay * 1000:.0f} ms"


def count_rows(output: Path) -> int:
    """The rows of metrics.json so far."""
    path = output / "metrics.json"
    return path.read_text().count("\n") if path.is_file() else 0


def _wait(job: Job, happened: Callable[[], bool], pause: float = 0.005) -> None:
    while job.running() and not happened():
        time.sleep(pause)
