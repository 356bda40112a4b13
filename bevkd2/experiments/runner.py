"""Runs an experiment's runs in processes of their own, a few at a time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bevkd2.experiments.processes import log_tail, run_logged, run_tasks
from bevkd2.experiments.report import number
from bevkd2.experiments.results import result_path
from bevkd2.experiments.run import run_folder
from bevkd2.experiments.spec import Experiment, Row


@dataclass(frozen=True)
class Ended:
    """A run that has ended.

    Attributes:
        row: of the run.
        seed: of the run.
        code: exit status of its process.
        seconds: that it took here.
        log: what it printed.
    """

    row: Row
    seed: int
    code: int
    seconds: float
    log: Path


def run_all(
    experiment: Experiment,
    runs: Sequence[tuple[Row, int]],
    command: Callable[[Row, int], Sequence[str]],
    *,
    output: Path,
    results: Path,
    jobs: int,
    say: Callable[[str], None],
) -> list[Ended]:
    """Runs the given runs, each in a process with one thread; one that fails stops nothing.

    Args:
        experiment: whose runs they are.
        runs: in the order in which they start.
        command: the words of the command that does one.
        output: each process prints to ``output/EXPERIMENT/ROW_SEED/console.txt``.
        results: of all experiments; a process writes its result there.
        jobs: processes at a time.
        say: prints a line, one for each event.

    Returns:
        The runs that failed.
    """
    ended: list[Ended] = []
    started = time.monotonic()
    turn = threading.Lock()

    def one(row: Row, seed: int, stop: threading.Event) -> None:
        log = run_folder(output, row, seed) / "console.txt"
        say(f"start   {row.name} seed {seed}")
        begin = time.monotonic()
        code = run_logged(command(row, seed), log, stop)
        with turn:
            ended.append(Ended(row, seed, code, time.monotonic() - begin, log))
            left = len(runs) - len(ended)
            eta = f"{left} left, about {_duration((time.monotonic() - started) / len(ended) * left)}"
            if not stop.is_set():
                say(_event(ended[-1], experiment, results, eta))

    run_tasks([partial(one, row, seed) for row, seed in runs], jobs)
    return [run for run in ended if run.code]


def _event(run: Ended, experiment: Experiment, results: Path, eta: str) -> str:
    """Returns what is printed of a run that has ended."""
    head = f"{run.row.name} seed {run.seed}, {_duration(run.seconds)}"
    if run.code:
        return f"FAILED  {head}, exit status {run.code}; {eta}\n{log_tail(run.log)}"
    metrics = json.loads(result_path(results, run.row, run.seed).read_text())["metrics"]
    scores = ", ".join(f"{name} {number(metrics[name])}" for name in experiment.primary)
    return f"done    {head}, {scores}; {eta}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
