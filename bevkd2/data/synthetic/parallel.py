"""Scenes drawn by several processes, and the image files that they write."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

T = TypeVar("T")


def check_workers(workers: int) -> None:
    """Refuses a number of processes that is not positive.

    Raises:
        ValueError: it is not.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1")


def map_indices(make: Callable[[int], T], count: int, workers: int, unit: str, progress: bool) -> list[T]:
    """Calls ``make`` for 0 to ``count`` - 1.

    Args:
        make: can be pickled, and gives the same whatever process calls it.
        count: calls.
        workers: processes, at least 1.
        unit: what the progress bar counts.
        progress: show a progress bar.

    Returns:
        The results, in order.
    """
    return list(tqdm(_results(make, count, workers), total=count, unit=unit, disable=not progress))


def _results(make: Callable[[int], T], count: int, workers: int) -> Iterator[T]:
    if workers == 1:
        yield from map(make, range(count))
        return
    # Forking a process that runs threads (torch's, OpenCV's) can deadlock; a fresh interpreter cannot.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        yield from pool.map(make, range(count))


def write_image(path: Path, image: npt.NDArray[np.uint8], options: list[int]) -> None:
    """Writes an image file.

    Args:
        path: its suffix names the format; missing folders are made.
        image: (h, w, 3) RGB.
        options: OpenCV's options of the encoder.

    Raises:
        OSError: OpenCV could not encode it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not encoded:
        raise OSError(f"{path}: OpenCV could not encode the image")
    path.write_bytes(data.tobytes())
