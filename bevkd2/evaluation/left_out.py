"""Scores of a split with a part of it left out, from which a bootstrap over scenes or images is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class LeftOut:
    """What a scorer finds.

    Attributes:
        scores: of the whole split, by metric; NaN where a score is not defined.
        units: names of the parts: scenes, or blocks of images.
        without: metric -> the score without each of ``units``.
    """

    scores: dict[str, float]
    units: tuple[str, ...] = ()
    without: dict[str, list[float]] = field(default_factory=dict)


class LeftOutScorer(Protocol):
    """Scores the files that an evaluation of a split has written, and the same without a part of it."""

    def check(self, metrics: Sequence[str]) -> None:
        """Checks names of metrics.

        Args:
            metrics: the names.

        Raises:
            ValueError: one is unknown; the message names it and the known ones.
        """

    def score(self, folder: Path, metrics: Sequence[str], plain: Sequence[str] = ()) -> LeftOut:
        """Scores the split.

        Args:
            folder: where the evaluation has written its files.
            metrics: those that are also wanted without each part.
            plain: those that are not.
        """
