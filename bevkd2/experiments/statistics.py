"""Paired comparisons of runs with equal seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
NameT = TypeVar("NameT")


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two rows over the seeds that both have.

    Attributes:
        mean: of the differences.
        sd: standard deviation of the differences, n - 1 in the denominator.
        n: pairs.
        low, high: the 95 % interval of Student's t with n - 1 degrees of freedom.
        p: of the two-sided t test that the mean is 0.
    """

    mean: float
    sd: float
    n: int
    low: float
    high: float
    p: float


def paired_difference(differences: Sequence[float], level: float = 0.95) -> PairedDifference | None:
    """Returns what the differences of pairs say; None for fewer than two, which say nothing.

    Args:
        differences: one a pair.
        level: of the interval.
    """
    n = len(differences)
    if n < 2:
        return None
    mean, sd = float(np.mean(differences)), float(np.std(differences, ddof=1))
    error = sd / np.sqrt(n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return PairedDifference(mean, sd, n, mean - half, mean + half, p)


def holm(p_values: Mapping[NameT, float]) -> dict[NameT, float]:
    """Adjusts p values of several comparisons by Holm's method.

    Args:
        p_values: by name.

    Returns:
        Adjusted ones by name: those below a level are significant together at that level.
    """
    adjusted: dict[NameT, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def influences(score: float, without: Sequence[float]) -> Floats:
    """Returns how much each unit (scene, or block of images) adds to a score: the jackknife's influences.

    Their mean is 0. The score of units drawn with replacement is about ``score`` plus their mean influence.

    Args:
        score: of all units; gives its name to an error only.
        without: (U,) the score without each unit.

    Raises:
        ValueError: there are fewer than two units, or a score is not finite.
    """
    values = np.asarray(without, dtype=np.float64)
    if len(values) < 2 or not np.isfinite([score, *values]).all():
        raise ValueError(
            f"the score {score} has {len(values)} scores without a unit, expected two finite ones or more: a "
            "bootstrap over scenes needs them"
        )
    pulled: Floats = (len(values) - 1) * (values.mean() - values)
    return pulled


def standard_error(influence: Floats) -> float:
    """Returns the jackknife's standard error of a score, or of a difference of two.

    Args:
        influence: (U,) of :func:`influences`, or the difference of two models' influences.
    """
    units = len(influence)
    return float(np.sqrt(np.square(influence).sum() / (units * (units - 1))))


def two_way_interval(
    differences: Sequence[float],
    influence: Sequence[Floats],
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns a percentile interval of the mean difference when seeds and units are drawn again.

    Drawing from few seeds shows too little of their variance, and a percentile knows no Student's t. So the
    deviations of the seeds are stretched until the interval without units is about that of the t test.

    Args:
        differences: (S,) difference of the two rows by seed.
        influence: (S, U) difference of the two rows' influences by seed and unit.
        level: of the interval.
        draws: bootstrap samples.
        seed: of their generator.

    Returns:
        The lower and the upper end.
    """
    values, pulled = np.asarray(differences, dtype=np.float64), np.asarray(influence, dtype=np.float64)
    seeds, units = pulled.shape
    if seeds > 1:
        tail = (1 + level) / 2
        stretch = stats.t.ppf(tail, seeds - 1) / stats.norm.ppf(tail) * np.sqrt(seeds / (seeds - 1))
        values = values.mean() + stretch * (values - values.mean())
    table = values[:, None] + pulled
    rng = np.random.default_rng(seed)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    of_units = rng.multinomial(units, np.full(units, 1 / units), size=draws) / units
    means = np.einsum("bs,su,bu->b", of_seeds, table, of_units, optimize=True)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
