"""Writers: they take numbers out of the EventStorage to a file, to TensorBoard or to the log."""

import datetime
import json
import logging
import os
import time
from collections import defaultdict
from functools import cached_property
from typing import Any

import torch

from bevkd2.d2.embedded.events import EventStorage, get_event_storage
from bevkd2.d2.embedded.file_io import PathManager


class EventWriter:
    """What PeriodicWriter calls."""

    def write(self) -> None:
        """Writes what is new in the current EventStorage."""
        raise NotImplementedError

    def close(self) -> None:
        """Releases what :meth:`write` opened."""


class JSONWriter(EventWriter):
    """Appends the scalars to a file, one JSON object a line for each iteration."""

    def __init__(self, json_file: str, window_size: int = 20):
        """Opens the file.

        Args:
            json_file: path; an existing file is added to.
            window_size: iterations of the median for scalars that want smoothing.
        """
        self._file_handle = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        """Adds the scalars that are newer than the last write and flushes to disk."""
        rows: dict[int, dict[str, Any]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write:
                rows[iteration][name] = value
        for iteration, row in rows.items():
            self._file_handle.write(json.dumps({**row, "iteration": iteration}, sort_keys=True) + "\n")
        self._last_write = max(rows, default=self._last_write)
        self._file_handle.flush()
        if hasattr(self._file_handle, "fileno"):  # not on remote storage
            os.fsync(self._file_handle.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file_handle.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, images and histograms for TensorBoard."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any):
        """Sets the folder; the file is made at the first write.

        Args:
            log_dir: directory of the event files.
            window_size: iterations of the median for scalars that want smoothing.
            **kwargs: passed on to ``torch.utils.tensorboard.SummaryWriter``.
        """
        self._window_size = window_size
        self._writer_args = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # costs seconds to import

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        """Writes what is newer than the last write; images and histograms leave the storage."""
        storage = get_event_storage()
        newest = self._last_write
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                self._writer.add_scalar(name, value, iteration)
                newest = max(newest, iteration)
        self._last_write = newest
        for name, image, iteration in storage._vis_data:
            self._writer.add_image(name, image, iteration)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()

    def close(self) -> None:
        """Closes the event file, if one was made."""
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs a line of progress: ETA, losses, times, learning rate and GPU memory."""

    def __init__(self, max_iter: int | None = None, window_size: int = 20):
        """Sets up the printer.

        Args:
            max_iter: iterations of the whole training; without it there is no ETA.
            window_size: iterations of the median over losses.
        """
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None  # iteration, time; for an ETA without "time"

    def write(self) -> None:
        """Logs the line, unless the training is over."""
        storage = get_event_storage()
        if self._max_iter is not None and storage.iter >= self._max_iter:
            return
        eta = self._eta(storage)
        # scripts that read logs split on these names and blanks
        self.logger.info(
            f" {f'eta: {eta}  ' if eta else ''}iter: {storage.iter}  "
            f"{self._medians(storage, 'loss')}  {self._medians(storage, '[metric]')}  "
            f"{self._times(storage)} lr: {_learning_rate(storage)}  {_max_memory()}"
        )

    def _medians(self, storage: EventStorage, part: str) -> str:
        """The smoothed scalars whose name contains a part."""
        return "  ".join(
            f"{name}: {history.median(storage.count_samples(name, self._window_size)):.4g}"
            for name, history in storage.histories().items()
            if part in name
        )

    def _times(self, storage: EventStorage) -> str:
        """Mean and last seconds of a step and of its wait for data, as far as they are known."""
        text = ""
        histories = storage.histories()
        if "time" in histories:  # absent in the first iterations
            time_ = histories["time"]
            text += f"time: {time_.global_avg():.4f}  last_time: {time_.latest():.4f}  "
        if "data_time" in histories:
            data_time = histories["data_time"]
            average = data_time.avg(storage.count_samples("data_time", self._window_size))
            text += f"data_time: {average:.4f}  last_data_time: {data_time.latest():.4f}  "
        return text

    def _eta(self, storage: EventStorage) -> str:
        """Returns the remaining time as H:MM:SS, or an empty string if unknown."""
        if self._max_iter is None:
            return ""
        steps_left = self._max_iter - storage.iter - 1
        if "time" in storage.histories():
            seconds = storage.history("time").median(1000) * steps_left
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
            return str(datetime.timedelta(seconds=int(seconds)))
        now = time.perf_counter()
        last, self._last_write = self._last_write, (storage.iter, now)
        if last is None or last[0] == storage.iter:
            return ""
        return str(datetime.timedelta(seconds=int((now - last[1]) / (storage.iter - last[0]) * steps_left)))


def _learning_rate(storage: EventStorage) -> str:
    return f"{storage.history('lr').latest():.5g}" if "lr" in storage.histories() else "N/A"


def _max_memory() -> str:
    if not torch.cuda.is_available():
        return ""
    return f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M"
