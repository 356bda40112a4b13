"""metrics.json: written over interruptions as if there had been none, one row an iteration, and read."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bevkd2.checkpoint.io import replace_atomically
from bevkd2.d2 import EventWriter, HookBase, JSONWriter, TensorboardXWriter

_logger = logging.getLogger(__name__)
_WINDOW = 20  # iterations over which the writers smooth


@dataclass(frozen=True)
class Metrics:
    """What a metrics.json says.

    Attributes:
        rows: iteration -> name -> value, in order of the iterations.
        torn: numbers of the lines, counted from 1, that are no whole row, as after a kill.
    """

    rows: dict[int, dict[str, float]]
    torn: tuple[int, ...]


def read_metrics(path: Path) -> Metrics:
    """Reads the scalars that a training wrote.

    Args:
        path: metrics.json. Of an iteration that several lines have, what was written last counts.
    """
    rows: dict[int, dict[str, float]] = {}
    torn = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row:
            rows.setdefault(row["iteration"], {}).update(row)
        elif line.strip():
            torn.append(number)
    return Metrics(dict(sorted(rows.items())), tuple(torn))


class MetricsWriter(JSONWriter):
    """JSONWriter that can drop what an interrupted run wrote after its last checkpoint."""

    _file_handle: Any

    def __init__(self, path: Path) -> None:
        """Opens the file, which is added to.

        Args:
            path: the file.
        """
        super().__init__(str(path), _WINDOW)
        self._path = path

    @property
    def last_iteration(self) -> int:
        """The last iteration that was written; -1 before the first."""
        return int(self._last_write)

    def go_on_after(self, iteration: int) -> None:
        """Removes the rows of later iterations, and lines that a kill left incomplete.

        Args:
            iteration: the last one whose row stays.
        """
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if 0 <= _iteration(line) <= iteration]
        if len(kept) < len(lines):
            _logger.info("%s: %d rows are written anew", self._path, len(lines) - len(kept))
            self._file_handle.close()
            replace_atomically(self._path, lambda file: file.write("".join(kept).encode()))
            self._file_handle = self._path.open("a")
        self._last_write = iteration


def _iteration(line: str) -> int:
    """Returns the iteration of a row; -1 where the line is not a whole one."""
    return int(_row(line).get("iteration", -1)) if line.endswith("\n") else -1


def _row(line: str) -> dict[str, Any]:
    """Returns a row, which has an ``iteration``; empty where the line is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) and isinstance(row.get("iteration"), int) else {}


class MetricsHistory(HookBase):
    """Keeps the newest scalars in checkpoints, so that a resumed training writes what it would have written.

    Writers smooth over the last iterations and write scalars that are older than the last row.

    Attributes:
        restored: whether the training resumes from a checkpoint that has them.
    """

    def __init__(self, writers: Sequence[EventWriter]) -> None:
        """Takes the writers of this process.

        Args:
            writers: those of metrics.json and TensorBoard go on where the checkpoint was saved.
        """
        self._writers = writers
        self._state: dict[str, Any] = {"written": -1, "scalars": {}}
        self.restored = False

    def before_train(self) -> None:
        """Restores the scalars, and removes the rows that will be written again."""
        for name, (smoothed, values) in self._state["scalars"].items():
            for value, iteration in values:
                self.trainer.storage.put_scalar(name, value, smoothing_hint=smoothed, cur_iter=iteration)
        written = self._state["written"] if self.restored else self.trainer.start_iter - 1
        for writer in self._writers:
            if isinstance(writer, MetricsWriter):
                writer.go_on_after(written)
            elif isinstance(writer, TensorboardXWriter):
                writer._last_write = written

    def state_dict(self) -> dict[str, Any]:
        """Returns the last iteration that is written, and of each scalar what the writers still need."""
        storage = getattr(self.trainer, "storage", None)  # there is none before the training
        if storage is None:
            return {}
        hints = storage.smoothing_hints()
        written = [writer.last_iteration for writer in self._writers if isinstance(writer, MetricsWriter)]
        return {
            "written": max(written, default=-1),
            "scalars": {
                name: [smoothed, _newest(storage.history(name).values(), _WINDOW if smoothed else 1)]
                for name, smoothed in hints.items()
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps what :meth:`state_dict` returned until the training begins."""
        scalars = {
            name: (smoothed, [(float(value), int(iteration)) for value, iteration in values])
            for name, (smoothed, values) in state_dict["scalars"].items()
        }
        self._state, self.restored = {"written": int(state_dict["written"]), "scalars": scalars}, True


def _newest(values: Sequence[tuple[float, float]], iterations: int) -> list[list[float]]:
    oldest = values[-1][1] - iterations
    return [[value, iteration] for value, iteration in values if iteration > oldest]
