"""What every evaluator asks of a model's detections."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bevkd2.structures.box_tensor import BoxTensor


def check_finite(boxes: BoxTensor, scores: npt.NDArray[np.float64], where: str) -> None:
    """Checks that no number of a detection is NaN or infinite.

    Args:
        boxes: K boxes on the CPU.
        scores: (K,).
        where: what they were found in, for the message.

    Raises:
        ValueError: one is not finite.
    """
    if not (np.isfinite(boxes.tensor.numpy()).all() and np.isfinite(scores).all()):
        raise ValueError(
            f"the detections of {where} contain NaN or infinity: the model's weights or its training have "
            "diverged; evaluate an earlier checkpoint"
        )


def check_labels(labels: npt.NDArray[np.int64], num_classes: int, where: str) -> None:
    """Checks that every label is that of a class.

    Args:
        labels: (K,).
        num_classes: how many DATASETS.CLASSES names.
        where: what the objects were found in, for the message.

    Raises:
        ValueError: a label below 0, or beyond the classes.
    """
    strange = labels[(labels < 0) | (labels >= num_classes)]
    if len(strange):
        raise ValueError(
            f"the detections of {where} have the label {strange[0]}, expected 0 to {num_classes - 1}: the "
            "model has another number of classes than DATASETS.CLASSES"
        )
