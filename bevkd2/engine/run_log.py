"""What a run writes about itself: the log's handlers, and the report on its environment."""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import logging
import platform
import sys
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from termcolor import colored
from tqdm import tqdm

import bevkd2
from bevkd2.d2 import PROVIDER
from bevkd2.errors import LOG_HANDLER

# The engine logs as detectron2, whichever provider bevkd2.d2 has chosen.
_LOGGERS = ("bevkd2", "detectron2", "fvcore", "iopath")
_DATE_FORMAT = "%m/%d %H:%M:%S"
_ENVIRONMENT = "environment:"


class _LogFile(logging.FileHandler):
    """Says once, in one line, that the file cannot be written, as on a full disk."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            sys.stderr.write(f"warning: {self.baseFilename} cannot be written: {error}\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of lines that could not be written, which was said
            super().close()


class _ConsoleHandler(logging.Handler):
    """Writes to stdout, above a progress bar where one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


class _ConsoleFormatter(logging.Formatter):
    """Colours the prefix on a terminal and marks warnings and errors."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        prefix = colored(f"[{record.asctime} {record.name}]:", "green")
        mark = colored(record.levelname, "red") + " " if record.levelno >= logging.WARNING else ""
        return f"{prefix} {mark}{record.message}"

    def usesTime(self) -> bool:  # noqa: N802
        return True


def log_to(output_dir: str | Path, rank: int = 0) -> None:
    """Sends the project's log to ``output_dir/log.txt`` and, on rank 0, to stdout.

    The handlers sit on the root logger, so warnings of other libraries are kept too, and a second call
    (another run in the same process) replaces those of the first.

    Args:
        output_dir: an existing folder; its log is added to.
        rank: this process; others than 0 write ``log.txt.rank<N>`` and not to stdout.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if (h.name or "").startswith("bevkd2.")]:
        root.removeHandler(handler)
        handler.close()
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)
    file = _LogFile(Path(output_dir) / (f"log.txt.rank{rank}" if rank else "log.txt"))
    file.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", _DATE_FORMAT))
    file.name = LOG_HANDLER
    root.addHandler(file)
    if rank == 0:
        console = _ConsoleHandler()
        console.setFormatter(_ConsoleFormatter(datefmt=_DATE_FORMAT))
        console.name = "bevkd2.console"
        root.addHandler(console)


def log_environment(logger: logging.Logger) -> None:
    """Logs :func:`environment_report`, so that :func:`read_environment` finds it.

    Args:
        logger: one that writes to the run's ``log.txt``.
    """
    logger.info("%s\n%s", _ENVIRONMENT, environment_report())


def environment_report() -> str:
    """Returns a table of what a result may depend on, the provider of the engine first."""
    rows = [
        ("bevkd2.d2 provider", PROVIDER),
        ("bevkd2", f"{bevkd2.__version__} at {Path(bevkd2.__file__).parent}"),
        ("Python", platform.python_version()),
        ("platform", platform.platform()),
        ("numpy", np.__version__),
        ("PyTorch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        *((name, _version(name)) for name in ("torchvision", "timm", "fvcore", "nuscenes-devkit")),
        ("GPUs", ", ".join(_gpus()) or f"none ({why_no_gpu()})"),
    ]
    if torch.cuda.is_available():
        rows.append(("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}"))
    return tabulate(rows)


def read_environment(log: Path) -> dict[str, str]:
    """Returns what the last :func:`environment_report` in a log says, by name; empty where it has none.

    Args:
        log: log.txt of a run; not UTF-8 in parts, or cut off, is fine.
    """
    lines = iter(log.read_text(encoding="utf-8", errors="replace").splitlines())
    found: dict[str, str] = {}
    for line in lines:
        rule = next(lines, "") if line.endswith(_ENVIRONMENT) else ""
        width = len(rule) - len(rule.lstrip("-"))
        if width:
            table = itertools.takewhile(lambda row: row.strip() and not row.startswith(("-", "[")), lines)
            found = {row[:width].strip(): row[width:].strip() for row in table}
    return found


def why_no_gpu() -> str:
    """Returns the likely reason why PyTorch sees no GPU."""
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    return (
        f"this PyTorch was built for CUDA {torch.version.cuda}, but no driver or no visible device was found"
    )


def _gpus() -> list[str]:
    return [f"{i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
