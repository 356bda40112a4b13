"""EventStorage: where a training step leaves its numbers for whoever wants to write them."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fvcore.common.history_buffer import HistoryBuffer

_storages: list["EventStorage"] = []
_KEPT = 1000  # numbers of a name: as many as any writer looks back, so that a long training does not grow


def get_event_storage() -> "EventStorage":
    """Returns the storage of the innermost ``with EventStorage(...)``.

    Raises:
        AssertionError: there is none.
    """
    if not _storages:
        raise AssertionError(
            "get_event_storage() has to be called inside a 'with EventStorage(...)' context!"
        )
    return _storages[-1]


def has_event_storage() -> bool:
    """Returns whether the caller runs inside a ``with EventStorage(...)``."""
    return bool(_storages)


class EventStorage:
    """History of named scalars, and the images and histograms that wait for a writer."""

    def __init__(self, start_iter: int = 0):
        """Starts an empty history.

        Args:
            start_iter: the iteration that the first numbers belong to.
        """
        self._history: dict[str, HistoryBuffer] = defaultdict(lambda: HistoryBuffer(_KEPT))
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._iter = start_iter
        self._current_prefix = ""
        self._vis_data: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def put_scalar(
        self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Adds a number to the history of a name.

        Args:
            name: the name; the current name scope is put before it.
            value: what ``float`` takes.
            smoothing_hint: whether writers should smooth it; the same at every call for one name.
            cur_iter: the iteration that it belongs to; by default the current one.

        Raises:
            AssertionError: the name was put with the other smoothing hint before.
        """
        name = self._current_prefix + name
        if self._smoothing_hints.setdefault(name, smoothing_hint) != smoothing_hint:
            raise AssertionError(f"Scalar {name} was put with a different smoothing_hint!")
        iteration = self._iter if cur_iter is None else cur_iter
        self._latest_scalars[name] = (float(value), iteration)
        self._history[name].update(float(value), iteration)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: Any) -> None:
        """Adds several numbers.

        Args:
            smoothing_hint: as in :meth:`put_scalar`, for all of them.
            cur_iter: as in :meth:`put_scalar`.
            **kwargs: name -> value.
        """
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Keeps an image for TensorBoard.

        Args:
            img_name: its tag.
            img_tensor: (3, H, W) RGB, uint8 in [0, 255] or float in [0, 1].
        """
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """Keeps a histogram of a tensor's values for TensorBoard.

        Args:
            hist_name: its tag.
            hist_tensor: any shape.
            bins: number of bins between the least and the greatest value.
        """
        values = hist_tensor.detach().float().flatten().cpu()
        low, high = values.min().item(), values.max().item()
        self._histograms.append(
            {
                "tag": hist_name,
                "min": low,
                "max": high,
                "num": values.numel(),
                "sum": values.sum().item(),
                "sum_squares": values.square().sum().item(),
                "bucket_limits": torch.linspace(low, high, bins + 1)[1:].tolist(),
                "bucket_counts": torch.histc(values, bins=bins).tolist(),
                "global_step": self._iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """Returns the last 1000 numbers of a name.

        Raises:
            KeyError: nothing was put under it.
        """
        if name not in self._history:
            raise KeyError(f"No history metric available for {name}!")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """Returns the last 1000 numbers of each name."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Returns the last number of each name, with its iteration."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Returns what :meth:`latest` does, with a median for the names that want smoothing.

        Args:
            window_size: iterations that the median is taken over.

        Returns:
            Name -> (number or median, iteration of the last number).
        """
        return {
            name: (self._median(name, window_size) if self._smoothing_hints[name] else value, iteration)
            for name, (value, iteration) in self._latest_scalars.items()
        }

    def _median(self, name: str, window_size: int) -> float:
        return float(self._history[name].median(self.count_samples(name, window_size)))

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """Returns how many numbers a name got in its last iterations.

        Args:
            name: the name.
            window_size: iterations to look back, from the last one in which the name got a number.

        Returns:
            The count.
        """
        data = self._history[name].values()
        oldest = data[-1][1] - window_size
        count = 0
        for _, iteration in reversed(data):
            if iteration <= oldest:
                break
            count += 1
        return count

    def smoothing_hints(self) -> dict[str, bool]:
        """Returns whether each name wants smoothing."""
        return self._smoothing_hints

    def step(self) -> None:
        """Goes to the next iteration."""
        self._iter += 1

    @property
    def iter(self) -> int:
        """The current iteration; a trainer keeps it equal to its own."""
        return self._iter

    @iter.setter
    def iter(self, val: int) -> None:
        self._iter = int(val)

    @property
    def iteration(self) -> int:
        """The current iteration."""
        return self._iter

    def __enter__(self) -> "EventStorage":
        _storages.append(self)
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        assert _storages[-1] is self, "EventStorage contexts must be left in the reverse order of entering"
        _storages.pop()

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Puts ``name/`` before the names of all scalars that are added within.

        Args:
            name: the scope; it replaces an outer one.
        """
        outer, self._current_prefix = self._current_prefix, name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._current_prefix = outer

    def clear_images(self) -> None:
        """Drops the images; their writer calls it."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Drops the histograms; their writer calls it."""
        self._histograms = []
