"""Runs commands in processes, a few at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

_POLL = 0.2  # seconds
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_tasks(tasks: Sequence[Callable[[threading.Event], None]], jobs: int) -> None:
    """Calls tasks in threads; where one raises, or at Ctrl-C, nothing more starts.

    Args:
        tasks: each gets an event, and ends early once it is set.
        jobs: tasks at a time.

    Raises:
        BaseException: what a task raised, or KeyboardInterrupt, after all tasks have ended.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(task, stop) for task in tasks]
        try:
            for future in as_completed(waiting):
                future.result()
        except BaseException:
            stop.set()
            for future in waiting:
                future.cancel()
            raise


def run_logged(
    command: Sequence[str],
    log: Path,
    stop: threading.Event,
    *,
    threads: int = 1,
    waiting: Callable[[], None] = lambda: None,
) -> int:
    """Runs a command.

    Args:
        command: its words.
        log: what it prints is appended to this file.
        stop: ends the command with SIGTERM once it is set.
        threads: of the process's numeric libraries. With one, processes do not compete for cores, and sums
            have one order.
        waiting: called a few times a second as long as the command runs.

    Returns:
        Its exit status.
    """
    if stop.is_set():
        return -signal.SIGTERM
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **dict.fromkeys(_THREADS, str(threads))}
    with log.open("a") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            while process.poll() is None:
                waiting()
                if stop.wait(_POLL):
                    process.terminate()
                    return process.wait()
        finally:
            if process.poll() is None:
                process.kill()
    return process.returncode


def log_tail(log: Path, lines: int = 8) -> str:
    """Returns the last lines of a log, and where it is."""
    last = log.read_text(errors="replace").splitlines()[-lines:] if log.is_file() else []
    return "\n".join([*(f"        {line}" for line in last), f"        whole log: {log}"])
