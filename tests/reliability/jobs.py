"""Trainings as processes that can be killed, and the comparison of what two trainings left."""

from __future__ import annotations

import importlib
import multiprocessing.util
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard
from torch.multiprocessing.spawn import start_processes

import bevkd2.nuscenes.devkit  # noqa: F401  (imported here and in the next line, not by each job)
from bevkd2.checkpoint import load_file
from bevkd2.cli import train
from bevkd2.cli.console import run_cli
from bevkd2.engine.stop import STOP_SIGNALS
from tests.reliability.families import Family
from tests.reliability.rows import TIMES, rows

launch_module = importlib.import_module("bevkd2.engine.launch")  # bevkd2.engine.launch is the function


class Job:
    """``bevkd2 train`` in a session of its own.

    It is forked from this process, which has imported everything: the start of an interpreter takes longer
    than the trainings here. Loader workers and further processes are real ones.
    """

    def __init__(self, words: Sequence[str], output: Path, *, threads: int = 1, program: Any = None) -> None:
        """Starts it.

        Args:
            words: the command line behind ``bevkd2 train``.
            output: gets what it prints, in ``<output>.out``.
            threads: of torch.
            program: called with the words instead of ``bevkd2 train``; returns the exit status.
        """
        self.output, self.printed = output, output.with_name(output.name + ".out")
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        self.status: int | None = None
        if self.pid == 0:
            self._run(list(words), threads, program or (lambda words: run_cli(train.main, words)))

    def _run(self, words: list[str], threads: int, program: Callable[[list[str]], int]) -> None:
        os.setsid()
        printed = os.open(self.printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        torch.set_num_threads(threads)
        launch_module.start_processes = _fork_processes
        status = 1
        try:
            status = program(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:  # noqa: BLE001  (as the interpreter does)
            traceback.print_exc()
        finally:
            multiprocessing.util._exit_function()  # ends the loader workers
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def running(self) -> bool:
        """Whether it has not ended yet."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is None

    def wait(self, seconds: float = 300.0) -> int:
        """Returns the exit status; a negative one is that of a signal."""
        end = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > end:
                self.kill_all()
                raise TimeoutError(f"{self.output}: still running after {seconds} s; see {self.printed}")
            time.sleep(0.005)
        assert self.status is not None
        return self.status

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to the first process alone."""
        os.kill(self.pid, number)

    def kill_all(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to every process of its session."""
        for pid in self.session():
            os.kill(pid, number)

    def session(self) -> list[int]:
        """The processes of its session that run, itself included."""
        return [pid for pid, session in _sessions() if session == self.pid]

    def alone_after(self, seconds: float) -> bool:
        """Whether no process of its session is left, at the latest after these seconds."""
        end = time.monotonic() + seconds
        while self.session():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def text(self) -> str:
        """What it printed."""
        return self.printed.read_text(errors="replace")

    def log(self) -> str:
        """Its log.txt so far."""
        path = self.output / "log.txt"
        return path.read_text(errors="replace") if path.is_file() else ""


def children(parent: int) -> list[int]:
    """The processes that another one started, in the order of their numbers."""
    path = Path(f"/proc/{parent}/task/{parent}/children")
    return sorted(map(int, path.read_text().split()))


def _fork_processes(function: Callable[..., None], args: Any, **settings: Any) -> Any:
    """torch's, but the ranks are forked too; they begin with the signal handlers of a new program."""

    def begin(*arguments: Any) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        function(*arguments)

    return start_processes(begin, args=args, **{**settings, "start_method": "fork"})


def _sessions() -> Iterator[tuple[int, int]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:  # it has just ended
                continue
            if fields[0] not in "ZX":
                yield int(folder.name), int(fields[3])


def run(words: Sequence[str], output: Path, **settings: Any) -> Job:
    """Runs a job to its end."""
    job = Job(words, output, **settings)
    job.wait()
    return job


def several(count: int) -> tuple[str, ...]:
    """The flags of this many processes."""
    return ("--num-gpus", str(count), "--dist-url", "auto")


def finished(family: Family, place: Path, processes: int = 1) -> Path:
    """The folder of a training that nothing disturbed; it is trained once."""
    family.prepare(place)
    output = place / family.name / f"straight_{processes}"
    if not (output / "model_final.pth").is_file():
        job = run(family.words(place, output, flags=several(processes)), output)
        assert job.status == 0, job.text()[-3000:]
    return output


def differences(one: Path, other: Path) -> list[str]:
    """What two finished trainings do not have in common, bit for bit: files, rows of metrics.json.

    Weights, adapters, optimizer, loss scaler, iteration and best score of model_final and model_best, every
    row of metrics.json but times, and the files of the last evaluation.
    """
    found = []
    for name in ("model_final.pth", "model_best.pth"):
        found += _unequal(_content(one / name), _content(other / name), name)
    a, b = rows(one), rows(other)
    iterations = [row["iteration"] for row in b]
    if len(set(iterations)) < len(iterations):
        found.append(f"metrics.json has iterations twice: {iterations}")
    found += _unequal({r["iteration"]: r for r in a}, {r["iteration"]: r for r in b}, "metrics.json")
    for path in sorted((one / "inference").rglob("*")):
        twin = other / path.relative_to(one)
        if path.is_file() and path.name not in ("config.yaml", "metrics_summary.json"):
            same = twin.is_file() and path.read_bytes() == twin.read_bytes()
            found += [] if same else [f"{path.relative_to(one)} differs"]
    return found


def _content(path: Path) -> dict[str, Any]:
    content = load_file(path) if path.is_file() else {}
    history = content.get("trainer", {}).get("hooks", {}).get("MetricsHistory", {}).get("scalars", {})
    for name in TIMES & set(history):
        del history[name]
    return content


def _unequal(a: Any, b: Any, name: str) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = {*a, *b}
        odd = [f"{name}: only one has {key}" for key in sorted(map(str, {*a} ^ {*b}))]
        return odd + [
            x for key in keys if key in a and key in b for x in _unequal(a[key], b[key], f"{name}/{key}")
        ]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [x for i, (p, q) in enumerate(zip(a, b, strict=True)) for x in _unequal(p, q, f"{name}[{i}]")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return [] if same else [f"{name}: tensors differ"]
    same = a == b or (a != a and b != b)  # NaN is NaN
    return [] if same else [f"{name}: {a!r} and {b!r}"]
