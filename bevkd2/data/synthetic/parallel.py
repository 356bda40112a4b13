"""Runs a function in several processes, and writes image files."""

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
    """Checks a number of processes.

    Args:
        workers: the number.

    Raises:
        ValueError: it is less than 1.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, expected at least 1")


def map_indices(make: Callable[[int], T], count: int, workers: int, unit: str, progress: bool) -> list[T]:
    """Calls ``make`` for 0 to ``count`` - 1.

    Args:
        make: a function that can be pickled, with the same result in any process.
        count: number of calls.
        workers: number of processes, at least 1.
        unit: name of what the progress bar counts.
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
        path: its suffix decides the format; missing folders are created.
        image: (h, w, 3) RGB.
        options: encoder options of OpenCV.

    Raises:
        OSError: OpenCV could not encode the image.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not encoded:
        raise OSError(f"{path}: OpenCV could not encode the image")
    path.write_bytes(data.tobytes())
