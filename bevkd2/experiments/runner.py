"""Runs an experiment's runs in processes of their own, a few at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from bevkd2.experiments.report import number
from bevkd2.experiments.results import result_path
from bevkd2.experiments.run import run_folder
from bevkd2.experiments.spec import Experiment, Row

_SHOWN = 8  # last lines of a failed run
_POLL = 0.2  # seconds
# One thread a run: runs do not compete for cores, and sums have one order.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


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
    stop, turn = threading.Event(), threading.Lock()

    def one(row: Row, seed: int) -> None:
        log = run_folder(output, experiment, row, seed) / "console.txt"
        say(f"start   {row.name} seed {seed}")
        begin = time.monotonic()
        code = _call(command(row, seed), log, stop)
        with turn:
            ended.append(Ended(row, seed, code, time.monotonic() - begin, log))
            left = len(runs) - len(ended)
            eta = f"{left} left, about {_duration((time.monotonic() - started) / len(ended) * left)}"
            if not stop.is_set():
                say(_event(ended[-1], experiment, results, eta))

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(one, row, seed) for row, seed in runs]
        try:
            for future in as_completed(waiting):
                future.result()
        except BaseException:  # Ctrl-C: nothing more starts, and what runs is ended
            stop.set()
            for future in waiting:
                future.cancel()
            raise
    return [run for run in ended if run.code]


def _event(run: Ended, experiment: Experiment, results: Path, eta: str) -> str:
    """Returns what is printed of a run that has ended."""
    head = f"{run.row.name} seed {run.seed}, {_duration(run.seconds)}"
    if run.code:
        return f"FAILED  {head}, exit status {run.code}; {eta}\n{tail(run.log)}"
    metrics = json.loads(result_path(results, experiment, run.row, run.seed).read_text())["metrics"]
    scores = ", ".join(f"{name} {number(metrics[name])}" for name in experiment.primary)
    return f"done    {head}, {scores}; {eta}"


def tail(log: Path) -> str:
    """Returns the last lines of a log, and where it is."""
    lines = log.read_text(errors="replace").splitlines()[-_SHOWN:] if log.is_file() else []
    return "\n".join([*(f"        {line}" for line in lines), f"        whole log: {log}"])


def _call(command: Sequence[str], log: Path, stop: threading.Event) -> int:
    """Runs a command; returns its exit status."""
    if stop.is_set():
        return -signal.SIGTERM
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env={**os.environ, **_ONE_THREAD}
        )
        try:
            while process.poll() is None:
                if stop.wait(_POLL):
                    process.terminate()
                    return process.wait()
        finally:
            if process.poll() is None:
                process.kill()
    return process.returncode


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
