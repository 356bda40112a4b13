"""What every evaluator asks of a model's detections."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bevkd2.structures.box_tensor import BoxTensor

_SIZES = slice(3, 6)


def check_detections(
    boxes: BoxTensor,
    scores: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    num_classes: int,
    where: str,
) -> None:
    """Checks that detections can be scored.

    Args:
        boxes: K boxes on the CPU.
        scores: (K,).
        labels: (K,).
        num_classes: how many classes there are.
        where: what they were found in, for the message.

    Raises:
        ValueError: a number is NaN or infinite, a size is not above 0, a label is not that of a class, or
            there are not K of each.
    """
    if not len(boxes) == len(scores) == len(labels):
        raise ValueError(
            f"the detections of {where} are {len(boxes)} boxes, {len(scores)} scores and {len(labels)} "
            "labels, expected as many of each"
        )
    numbers = boxes.tensor.detach().numpy()
    if not (np.isfinite(numbers).all() and np.isfinite(scores).all()):
        raise ValueError(
            f"the detections of {where} contain NaN or infinity: the model's weights or its training have "
            "diverged; evaluate an earlier checkpoint"
        )
    flat = (numbers[:, _SIZES] <= 0).any(axis=1)
    if flat.any():
        size = ", ".join(f"{side:g}" for side in numbers[flat.argmax(), _SIZES])
        raise ValueError(
            f"the detections of {where} have a box of length, width, height {size} m, expected sizes above "
            "0: the model's weights or its training have diverged; evaluate an earlier checkpoint"
        )
    cause = "the model has another number of classes than DATASETS.CLASSES"
    check_range(labels, num_classes, where, "label", cause)


def check_range(values: npt.NDArray[np.int64], count: int, where: str, name: str, cause: str) -> None:
    """Checks that every value is one of 0 to ``count - 1``.

    Args:
        values: (K,).
        count: how many values there are.
        where: what they were found in, for the message.
        name: what a value is, for the message.
        cause: of a wrong value, for the message.

    Raises:
        ValueError: one is below 0, or too large.
    """
    strange = values[(values < 0) | (values >= count)]
    if len(strange):
        raise ValueError(
            f"the detections of {where} have the {name} {strange[0]}, expected 0 to {count - 1}: {cause}"
        )
