"""Logging: to the console on the main process, to one file a process, and not too often."""

import atexit
import functools
import logging
import sys
import time
from collections import Counter
from pathlib import PurePath
from types import FrameType
from typing import IO, Any

from tabulate import tabulate
from termcolor import colored

from bevkd2.d2.embedded.file_io import PathManager

_DATE_FORMAT = "%m/%d %H:%M:%S"
_calls: Counter[Any] = Counter()
_last_logged: dict[Any, float] = {}


class _ColorfulFormatter(logging.Formatter):
    """Colour the prefix, shorten the root logger's name and mark warnings and errors."""

    def __init__(self, root_name: str, abbrev_name: str):
        super().__init__(colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s", datefmt=_DATE_FORMAT)
        self._root = root_name + "."
        self._short = abbrev_name + "." if abbrev_name else ""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        shown = logging.makeLogRecord(record.__dict__)  # the other handlers get the full name
        shown.name = record.name.replace(self._root, self._short, 1)
        text = super().formatMessage(shown)
        if record.levelno == logging.WARNING:
            return colored("WARNING", "red", attrs=["blink"]) + " " + text
        if record.levelno >= logging.ERROR:
            return colored("ERROR", "red", attrs=["blink", "underline"]) + " " + text
        return text


@functools.lru_cache  # so that a second call with the same arguments adds no second handler
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Sends a logger and all below it to the console and to a file.

    Args:
        output: a file that ends in .txt or .log, or a directory, where ``log.txt`` is written; None: no file.
        distributed_rank: this process's rank; only rank 0 writes to the console, the others' files end in
            ``.rank<N>``.
        color: colour the console.
        name: the root logger; the engine's is ``detectron2`` whichever provider is active.
        abbrev_name: shown on the console in its place; by default ``d2`` for ``detectron2``.
        enable_propagation: pass records on to the parent logger too.
        configure_stdout: write to the console at all.

    Returns:
        The logger, at level DEBUG.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name
    plain = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_DATE_FORMAT)
    if configure_stdout and distributed_rank == 0:
        console = _ColorfulFormatter(name, abbrev_name) if color else plain
        _add_handler(logger, sys.stdout, console)
    if output is not None:
        _add_handler(logger, _log_stream(_log_file(output, distributed_rank)), plain)
    return logger


def _add_handler(logger: logging.Logger, stream: IO[str], formatter: logging.Formatter) -> None:
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(formatter)
    logger.addHandler(handler)


def _log_file(output: str, rank: int) -> str:
    """The file for an ``output`` argument."""
    file = output if output.endswith((".txt", ".log")) else output.rstrip("/") + "/log.txt"
    return f"{file}.rank{rank}" if rank > 0 else file


@functools.cache  # loggers of several names share the stream of one file
def _log_stream(filename: str) -> IO[str]:
    if "://" not in filename:  # remote storage has no directories
        PathManager.mkdirs(str(PurePath(filename).parent))
    stream: IO[str] = PathManager.open(filename, "a")
    atexit.register(stream.close)
    return stream


def _find_caller() -> tuple[str, tuple[str, int, str]]:
    """Logger name and identity of the code that called one of this module's log functions."""
    frame: FrameType = sys._getframe(1)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    name = frame.f_globals["__name__"]
    code = frame.f_code
    return "detectron2" if name == "__main__" else name, (code.co_filename, frame.f_lineno, code.co_name)


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple[str, ...] = "caller"
) -> None:
    """Logs only the first ``n`` times.

    Args:
        lvl: the level.
        msg: the message.
        n: how many times.
        name: the logger; by default that of the calling module.
        key: what counts as the same log: ``caller`` (place in the code), ``message``, or both.
    """
    keys = (key,) if isinstance(key, str) else key
    module, caller = _find_caller()
    identity = (caller if "caller" in keys else None, msg if "message" in keys else None)
    _calls[identity] += 1
    if _calls[identity] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Logs no more than once in a while from one place in the code.

    Args:
        lvl: the level.
        msg: the message.
        n: the least time between two logs (s).
        name: the logger; by default that of the calling module.
    """
    module, caller = _find_caller()
    now = time.monotonic()
    if caller not in _last_logged or now - _last_logged[caller] >= n:
        _last_logged[caller] = now
        logging.getLogger(name or module).log(lvl, msg)


def create_small_table(small_dict: dict[str, Any]) -> str:
    """Makes a table of one row.

    Args:
        small_dict: column name -> value.

    Returns:
        The table, in Markdown's form.
    """
    return tabulate(
        [list(small_dict.values())],
        headers=list(small_dict),
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )
