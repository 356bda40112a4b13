"""The statistics against numbers from textbooks and other programs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bevkd2.experiments.statistics import (
    holm,
    influences,
    paired_difference,
    standard_error,
    two_way_interval,
)

# Student (1908), "The probable error of a mean": additional hours of sleep by the second drug over the first.
# R's t.test(paired = TRUE) prints t = 4.0621, df = 9, p-value = 0.002833, mean 1.58, and the 95 percent
# interval 0.7001142 2.4598858.
SLEEP = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]


def test_paired_difference_of_students_sleep_data() -> None:
    found = paired_difference(SLEEP)
    assert found is not None and found.n == 10
    assert found.mean == pytest.approx(1.58) and found.sd == pytest.approx(1.229995, abs=1e-6)
    assert (found.low, found.high) == (pytest.approx(0.7001142, abs=1e-7), pytest.approx(2.4598858, abs=1e-7))
    assert found.p == pytest.approx(0.002833, abs=5e-7)


def test_paired_difference_agrees_with_scipys_test() -> None:
    values = np.random.default_rng(0).normal(0.01, 0.02, size=6)
    found = paired_difference(list(values))
    expected = stats.ttest_1samp(values, 0.0)
    interval = expected.confidence_interval(0.95)
    assert found is not None and found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_paired_difference_of_few_or_equal_numbers() -> None:
    assert paired_difference([]) is None and paired_difference([0.3]) is None
    equal, zero = paired_difference([0.25, 0.25]), paired_difference([0.0, 0.0, 0.0])
    assert equal is not None and (equal.low, equal.high, equal.p) == (0.25, 0.25, 0.0)
    assert zero is not None and zero.p == 1.0


def test_standard_error_of_a_mean_is_the_deviation_over_the_root_of_the_count() -> None:
    without = [(sum(SLEEP) - hours) / (len(SLEEP) - 1) for hours in SLEEP]
    found = standard_error(influences(float(np.mean(SLEEP)), without))
    assert found == pytest.approx(1.229995 / np.sqrt(len(SLEEP)), abs=1e-6)


def test_holm_gives_what_r_gives() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") is 0.03 0.06 0.06 0.02.
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert list(found) == ["a", "b", "c", "d"]
    assert list(found.values()) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0} and holm({}) == {}


def test_influences_of_a_mean_are_the_deviations_of_its_numbers() -> None:
    numbers = np.array([1.0, 4.0, 2.0, 9.0])
    without = [(numbers.sum() - x) / 3 for x in numbers]
    assert influences(numbers.mean(), without) == pytest.approx(numbers - numbers.mean())
    with pytest.raises(ValueError, match="expected two finite ones"):
        influences(1.0, [1.0])
    with pytest.raises(ValueError, match="expected two finite ones"):
        influences(1.0, [1.0, float("nan")])


def test_two_way_interval_has_the_width_of_both_sources() -> None:
    """Of normal effects of seeds and units, the bootstrap's variance is the sum of both means' variances."""
    rng = np.random.default_rng(1)
    seeds, units = 40, 60
    of_seeds, of_units = rng.normal(0.0, 0.02, seeds), rng.normal(0.0, 0.1, units)
    influence = [of_units - of_units.mean()] * seeds
    low, high = two_way_interval(list(0.03 + of_seeds), influence)
    half_of_seeds = stats.t.ppf(0.975, seeds - 1) * of_seeds.std(ddof=1) / np.sqrt(seeds)
    half_of_units = 1.96 * of_units.std() / np.sqrt(units)
    both = np.hypot(half_of_seeds, half_of_units)
    assert (high - low) / 2 == pytest.approx(both, rel=0.05)
    assert (low + high) / 2 == pytest.approx(0.03 + of_seeds.mean(), abs=0.1 * both)
    # Without either source, the other alone.
    none = [np.zeros(units)] * seeds
    low, high = two_way_interval(list(of_seeds), none)
    assert (high - low) / 2 == pytest.approx(half_of_seeds, rel=0.05)
    low, high = two_way_interval([0.1] * seeds, influence)
    assert (high - low) / 2 == pytest.approx(half_of_units, rel=0.05)


def test_two_way_interval_of_few_seeds_is_about_that_of_the_t_test() -> None:
    values = [0.010, 0.014, -0.002, 0.021, 0.006, 0.012]
    low, high = two_way_interval(values, [np.zeros(20)] * len(values))
    found = paired_difference(values)
    assert found is not None
    assert high - low == pytest.approx(found.high - found.low, rel=0.1)


def test_influences_of_ap_give_the_error_of_drawing_scenes_again() -> None:
    """For a score that is no mean (a ratio), the jackknife's interval is near that of real resampling."""
    rng = np.random.default_rng(2)
    hits, objects = rng.integers(0, 9, 80).astype(float), rng.integers(9, 14, 80).astype(float)
    score = hits.sum() / objects.sum()
    without = [(hits.sum() - h) / (objects.sum() - o) for h, o in zip(hits, objects, strict=True)]
    low, high = two_way_interval([score], [influences(score, without)])
    drawn = rng.integers(0, 80, (4000, 80))
    real = np.quantile(hits[drawn].sum(1) / objects[drawn].sum(1), [0.025, 0.975])
    assert [low, high] == pytest.approx(list(real), abs=0.1 * (real[1] - real[0]))
