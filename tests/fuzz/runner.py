"""Runs cases in a process of their own, which a crash, a hang or a bomb ends without the others.

One case by itself, with its traceback: ``python -m tests.fuzz.runner PNG 3``.
"""

from __future__ import annotations

import faulthandler
import logging
import math
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bevkd2.errors import USER_ERRORS, message_of, traceback_of
from tests.fuzz.mutate import Mutation
from tests.fuzz.reference import agree
from tests.fuzz.targets import TARGETS, Result, Target

SEED = 11
SECONDS = 10  # of the processor, that a case may take
MEMORY = 2 * 2**30  # bytes of address space that a case may ask for, besides what the process has
_LONG = 2000  # characters of a readable message
_WAIT = 120  # seconds after which a process that computes nothing hangs


@dataclass
class Tally:
    """What became of the cases of a target.

    Attributes:
        name: of the target.
        outcomes: "same", "other data", "warned" (accepted), "refused" -> how many.
        findings: what should not be.
    """

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


def run(target: Target, cases: Sequence[int], folder: Path) -> Tally:
    """Runs cases of a target, each of which its number alone decides; prints findings."""
    folder.mkdir(parents=True)
    target.prepare(folder)
    before = target.read(folder)
    if wrong := _silent_change(target, folder, before, warned=False):
        raise AssertionError(f"{target.name}: the reference differs without a mutation: {wrong}")
    tally, left = Tally(target.name), list(cases)
    while left:
        ours, theirs = multiprocessing.Pipe()
        worker = multiprocessing.get_context("fork").Process(
            target=_work, args=(target, left, folder, before, theirs), daemon=True
        )
        worker.start()
        theirs.close()
        try:
            while left:
                if not ours.poll(_WAIT):
                    raise EOFError
                outcome, detail = ours.recv()
                tally.outcomes[outcome] += 1
                if outcome == "finding":
                    tally.findings.append(detail)
                    print(detail, flush=True)
                left.pop(0)
        except (EOFError, ConnectionError):
            worker.kill()
            worker.join()
            ended = (
                "it hangs" if worker.exitcode in (-signal.SIGPROF, -signal.SIGKILL) else "the process died"
            )
            tally.outcomes["finding"] += 1
            case = f"{target.name} {left.pop(0)}"
            tally.findings.append(f"{case}: {ended} (exit code {worker.exitcode})")
            print(tally.findings[-1], flush=True)
            _restore(target, folder)
        worker.join()
    print(f"{target.name}: {dict(tally.outcomes)}, {time.process_time():.1f} s", flush=True)
    return tally


def _restore(target: Target, folder: Path) -> None:
    """Puts back what the worker that died had changed."""
    for path in folder.rglob("*.original"):
        path.replace(path.with_suffix(""))


def _work(target: Target, cases: list[int], folder: Path, before: Result, report: Connection) -> None:
    torch.set_num_threads(1)  # the threads of the parent are not forked
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    for case in cases:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process
        report.send(attempt(target, case, folder, before))
    signal.setitimer(signal.ITIMER_PROF, 0)


def attempt(target: Target, case: int, folder: Path, before: Result) -> tuple[str, str]:
    """Mutates a file, reads, and puts the file back; returns the outcome, and what a finding is."""
    path, mutation = mutated(target, case, folder)
    original = path.read_bytes()
    spare = path.with_name(f"{path.name}.original")
    path.rename(spare)
    path.write_bytes(mutation.data)
    heard = _Warnings()
    logging.getLogger().addHandler(heard)
    try:
        outcome, detail = _outcome(target, mutation.data, original, folder, before, heard)
    except BaseException as error:  # noqa: BLE001  (the finding)
        outcome, detail = _judged(error, path, mutation.field)
    finally:
        logging.getLogger().removeHandler(heard)
        spare.replace(path)
    return outcome, f"{target.name} {case}: {path.relative_to(folder)}: {mutation.name}: {detail}"


def mutated(target: Target, case: int, folder: Path) -> tuple[Path, Mutation]:
    """Returns the file of a case, and what it becomes."""
    rng = random.Random(f"{SEED} {target.name} {case}")
    path = rng.choice(sorted(path for pattern in target.files for path in folder.glob(pattern)))
    return path, target.mutate(rng, path.read_bytes())


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _outcome(
    target: Target, data: bytes, original: bytes, folder: Path, before: Result, heard: _Warnings
) -> tuple[str, str]:
    after = target.read(folder)
    if changed := _silent_change(target, folder, after, warned=bool(heard.messages)):
        return "finding", changed
    if different := list(differences(before, after)):
        if heard.messages:
            return "warned", ""
        if not target.valid(original, data):
            return "finding", f"accepted silently, with another {', '.join(different[:4])}"
        if odd := [
            place for place in different if not _finite(_at(after, place)) and _finite(_at(before, place))
        ]:
            return "finding", f"accepted, and {odd[0]} is not finite"
        return "other data", ""
    return "same", ""


def _silent_change(target: Target, folder: Path, after: Result, warned: bool) -> str:
    """Returns where what was accepted is not what the files say; "" where it is, or is not compared."""
    if target.reference is None:
        return ""
    try:
        expected = target.reference(folder)
    except Exception as error:  # noqa: BLE001  (of any reader)
        # A warning may say what was left out, such as the objects of a foreign checkpoint.
        return (
            "" if warned else f"accepted, but the reference cannot read it: {type(error).__name__}: {error}"
        )
    different = list(differences(expected, after["content"], same=agree))
    shown = ", ".join(
        f"{place[1:]} ({_at(after['content'], place)!s:.60} instead of {_at(expected, place)!s:.60})"
        for place in different[:3]
    )
    return f"accepted, but the values are not those of the file: {shown}" if different else ""


def _judged(error: BaseException, path: Path, field: str) -> tuple[str, str]:
    message, text = message_of(error), traceback_of(error)
    last = f"{type(error).__name__}: {message[:300]!r}"
    problems = []
    if not isinstance(error, USER_ERRORS):
        problems.append("no user's error")
    if "MemoryError" in text or "can't allocate memory" in text or "bad_alloc" in text:
        problems.append("it asks for too much memory")
    if path.stem not in message:
        problems.append("the file is not named")
    if field and field != "token" and "JSON" not in message and field not in message:
        problems.append(f"the field {field} is not named")
    if len(message) > _LONG:
        problems.append(f"{len(message)} characters")
    if re.search(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]", message):
        problems.append("characters that cannot be printed")
    if not problems:
        return "refused", last
    where = [line.strip() for line in text.splitlines() if "/bevkd2/" in line and line.startswith("  File")]
    return "finding", f"{', '.join(problems)}: {last} ({where[-1] if where else ''})"


def differences(
    old: Any, new: Any, place: str = "", same: Callable[[Any, Any], bool] | None = None
) -> Iterator[str]:
    """Yields the places where two results differ; ``same`` compares two values, bit by bit by default."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if key in old and key in new:
                yield from differences(old[key], new[key], f"{place}/{key}", same)
            else:
                yield f"{place}/{key}"
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{place}/{i}", same)
    elif not (same or _equal)(old, new):
        yield place


def _equal(old: Any, new: Any) -> bool:
    old, new = (getattr(value, "tensor", value) for value in (old, new))  # of boxes
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        old, new = old.numpy(), new.numpy()
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        return old.shape == new.shape and old.dtype.kind == new.dtype.kind and old.tobytes() == new.tobytes()
    return type(old) is type(new) and (old == new or (old != old and new != new))


def _at(result: Any, place: str) -> Any:
    for key in place.split("/")[1:]:
        if isinstance(result, dict):
            result = result.get(key)
        elif isinstance(result, (list, tuple)) and int(key) < len(result):
            result = result[int(key)]
        else:
            return None
    return result


def _finite(value: Any) -> bool:
    value = getattr(value, "tensor", value)
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return value.dtype.kind != "O" and (value.dtype.kind not in "fc" or bool(np.isfinite(value).all()))
    return not isinstance(value, float) or math.isfinite(value)


def run_all(place: Path, share: int = 1, names: Sequence[str] = ()) -> list[Tally]:
    """Runs the cases of targets, all by default, or the first of so many; files are written to ``place``."""
    chosen = [target for target in TARGETS if not names or target.name in names]
    return [run(target, range(target.cases // share), place / target.name) for target in chosen]


def reproduce(place: Path, name: str, case: int) -> None:
    """Reads the files of one case in this process, and prints what becomes of it."""
    faulthandler.enable()
    target = next(target for target in TARGETS if target.name == name)
    target.prepare(place)
    before = target.read(place)
    path, mutation = mutated(target, case, place)
    print(f"{path}: {mutation.name}: {mutation.data[:300]!r}", flush=True)
    print(*attempt(target, case, place, before), flush=True)
    path.write_bytes(mutation.data)
    target.read(place)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        reproduce(Path(temporary), sys.argv[1], int(sys.argv[2]))
