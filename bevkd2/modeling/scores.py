"""A check that all detectors' decoding shares."""

from __future__ import annotations

from torch import Tensor


def check_scores(scores: Tensor) -> None:
    """Checks that scores are numbers: NaN is above no threshold, and would silently give no detections.

    Args:
        scores: of any shape.

    Raises:
        ValueError: one is NaN.
    """
    if bool(scores.isnan().any()):
        raise ValueError(
            "the model's scores contain NaN: its weights or its training have diverged; use an earlier "
            "checkpoint"
        )
