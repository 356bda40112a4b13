"""How far training is, and weights that change with it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where in training a step is."""

    iteration: int = 0
    """Counted from 0."""
    max_iter: int = 1
    """One past the last iteration."""

    @property
    def fraction(self) -> float:
        """Returns the share of the training that is over, 0 at the first iteration."""
        return self.iteration / self.max_iter


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A factor that rises linearly from 0 to 1, and falls linearly to 0 at the end of training.

    Raises:
        ValueError: a share that is not in [0, 1]; the message names ``key``.
    """

    warmup: float = 0.0
    """Share of the iterations, at the beginning, over which the factor rises; 0: it is 1 at once."""
    decay: float = 0.0
    """Share of the iterations, at the end, over which it falls; 0: never; 1: from the first one on."""
    key: str = "DISTILL"
    """Name of the config node with the keys WARMUP and DECAY."""

    def __post_init__(self) -> None:
        for name, share in (("WARMUP", self.warmup), ("DECAY", self.decay)):
            if not 0 <= share <= 1:
                raise ValueError(
                    f"{self.key}.{name} is {share}, expected a share of the iterations between 0 and 1"
                )

    def factor(self, progress: Progress) -> float:
        """Returns the factor of an iteration, in [0, 1]."""
        done = progress.fraction
        rising = min(1.0, done / self.warmup) if self.warmup else 1.0
        falling = min(1.0, (1 - done) / self.decay) if self.decay else 1.0
        return rising * falling
