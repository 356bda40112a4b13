"""What an experiment found: Markdown tables, and pictures of intervals and learning curves."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from bevkd2.experiments.results import Result
from bevkd2.experiments.spec import Experiment, Row
from bevkd2.experiments.statistics import (
    PairedDifference,
    holm,
    influences,
    paired_difference,
    two_way_interval,
)

Results = Mapping[tuple[str, int], Result]


@dataclass(frozen=True)
class Comparison:
    """A row beside the baseline, by one metric.

    Attributes:
        difference: over the seeds of both; None for fewer than two.
        p: of the difference, adjusted over the rows by Holm's method; None without a difference.
        interval: of the two-way bootstrap over seeds and scenes; None for other metrics than the headline.
    """

    difference: PairedDifference | None
    p: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Table:
    """A table of an experiment.

    Attributes:
        title: what it is about, for a caption.
        header: one text a column.
        rows: as many texts a row.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def values(results: Results, row: str, metric: str) -> dict[int, float]:
    """Returns the scores of a row by seed, in ascending order, those that are defined.

    Args:
        results: finished runs, by row and seed.
        row: the row's name.
        metric: the score's name; every result must have it.
    """
    found = {seed: result.metrics[metric] for (name, seed), result in results.items() if name == row}
    return {seed: value for seed, value in sorted(found.items()) if value is not None}


def compare(experiment: Experiment, results: Results, metric: str) -> dict[str, Comparison]:
    """Compares every row with the baseline.

    Args:
        experiment: its rows.
        results: finished runs.
        metric: one of ``experiment.primary`` or ``experiment.secondary``.

    Returns:
        By row, without the baseline.
    """
    pairs = [(row, experiment.baseline) for row in experiment.rows if row != experiment.baseline]
    found = compare_pairs(experiment, results, metric, pairs)
    return {row: comparison for (row, _), comparison in found.items()}


def compare_pairs(
    experiment: Experiment, results: Results, metric: str, pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Comparison]:
    """Compares rows with others, over the seeds that both have.

    Args:
        experiment: its rows.
        results: finished runs.
        metric: one of ``experiment.primary`` or ``experiment.secondary``.
        pairs: each the first row less the second; Holm's method adjusts over all of them.
    """
    seeds: dict[tuple[str, str], dict[int, float]] = {}
    for pair in pairs:
        of_row, of_other = (values(results, row, metric) for row in pair)
        seeds[pair] = {seed: of_row[seed] - of_other[seed] for seed in of_row if seed in of_other}
    found = {pair: paired_difference(list(of.values())) for pair, of in seeds.items()}
    adjusted = holm({pair: difference.p for pair, difference in found.items() if difference is not None})
    compared = {}
    for pair, difference in found.items():
        interval = None
        if difference is not None and metric == experiment.primary[0]:
            interval = _bootstrap(experiment, results, pair, metric, seeds[pair])
        compared[pair] = Comparison(difference, adjusted.get(pair), interval)
    return compared


def markdown(experiment: Experiment, results: Results) -> str:
    """Returns the tables of an experiment in Markdown.

    One for each primary metric, one of the other comparisons, one of the means of the other
    metrics, and one of the shares of the gradients. Rows without a finished run are named below
    them.

    Args:
        experiment: names rows and metrics.
        results: its finished runs, by row and seed; none: a sentence that says so is returned.
    """
    if not results:
        return f"No run of `{experiment.path.name}` is finished."
    parts = [
        tabulate(table.rows, headers=table.header, tablefmt="github", disable_numparse=True)
        for table in tables(experiment, results)
    ]
    if missing := not_run(experiment, results):
        parts.append(textwrap.fill(missing, 100))
    return "\n\n".join(parts)


def tables(experiment: Experiment, results: Results) -> list[Table]:
    """Returns the tables of an experiment, those of :func:`markdown`.

    Args:
        experiment: names rows and metrics.
        results: its finished runs, by row and seed; one at least.
    """
    found = [_primary_table(experiment, results, metric) for metric in experiment.primary]
    if (pairs := _pairs_table(experiment, results)).rows:
        found.append(pairs)
    if experiment.secondary:
        found.append(_secondary_table(experiment, results))
    if any(result.content["gradients"] for result in results.values()):
        found.append(_gradients_table(experiment, results))
    return found


def not_run(experiment: Experiment, results: Results) -> str:
    """Returns what has no finished run, as a sentence; "" where nothing is missing.

    Args:
        experiment: its runs.
        results: the finished ones, by row and seed. Of a row that has some, the missing seeds are
            named; of another, only the row is.
    """
    found = dict(with_results(experiment, results))
    missing: defaultdict[str, list[str]] = defaultdict(list)
    for row, seed in experiment.runs():
        if (row.name, seed) not in results:
            missing[row.name].append(str(seed))
    named = [
        experiment.rows[name].label + (f" (seeds {', '.join(seeds)})" if name in found else "")
        for name, seeds in missing.items()
    ]
    return f"Not run: {'; '.join(named)}." if named else ""


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """Returns a score as text; "-" where it is not defined.

    Args:
        value: the score; None, NaN and infinity are not defined.
        digits: after the point.
        sign: whether a number above 0 begins with "+".
    """
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def _digits(results: Results, metric: str) -> int:
    """Returns how many digits behind the point a metric gets: two where it is in percent, three else."""
    found = [abs(result.metrics[metric] or 0.0) for result in results.values()]
    return 2 if max(found) >= 10 else 3


def intervals_figure(experiment: Experiment, results: Results) -> Figure:
    """Draws every row's difference to the baseline: the seeds, the mean, and the 95 % interval.

    Args:
        experiment: names rows and primary metrics; one column for each metric.
        results: its finished runs, by row and seed; rows without one are left out.
    """
    others = [(name, row) for name, row in with_results(experiment, results) if name != experiment.baseline]
    count = len(experiment.primary)
    figure = Figure(figsize=(1.8 + 3.6 * count, 1.2 + 0.36 * len(others)), layout="constrained")
    all_axes = figure.subplots(1, count, squeeze=False, sharey=True)[0]
    for axes, metric in zip(all_axes, experiment.primary, strict=True):
        plain, compared = values(results, experiment.baseline, metric), compare(experiment, results, metric)
        for place, (name, _) in enumerate(others):
            own, found = values(results, name, metric), compared[name]
            single = [own[seed] - plain[seed] for seed in own if seed in plain]
            axes.plot(single, [place] * len(single), ".", color="0.7")
            if found.difference is not None:
                ends = [found.difference.low, found.difference.high]
                axes.plot(ends, [place, place], color="C0", linewidth=2)
                axes.plot(found.difference.mean, place, "o", color="C0")
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_title(metric, fontsize="medium")
        axes.set_xlabel(f"difference to {experiment.rows[experiment.baseline].label}")
        axes.locator_params(axis="x", nbins=5)
    all_axes[0].set_yticks(range(len(others)), [_wrapped(row) for _, row in others])
    all_axes[0].set_ylim(max(len(others), 1) - 0.5, -0.5)
    figure.suptitle(experiment.title)
    return figure


def curves_figure(experiment: Experiment, results: Results) -> Figure:
    """Draws the primary metrics during training: means over the seeds.

    The scores are those of the training world's own test split.

    Args:
        experiment: names rows and primary metrics; one column for each metric.
        results: its finished runs, by row and seed; runs without evaluations in training add
            nothing.
    """
    metrics = list(dict.fromkeys(metric.partition("@")[0] for metric in experiment.primary))
    figure = Figure(figsize=(3.0 + 4.0 * len(metrics), 3.8), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for number_, (name, row) in enumerate(experiment.rows.items()):
            points: dict[int, list[float]] = defaultdict(list)
            for (other, _), result in results.items():
                for entry in result.curve if other == name else ():
                    if entry.get(metric) is not None:
                        points[entry["iteration"]].append(entry[metric])
            if points:
                places = sorted(points)
                style = {"color": f"C{number_ % 10}", "linestyle": ("-", "--", ":")[number_ // 10 % 3]}
                axes.plot(
                    places, [np.mean(points[p]) for p in places], label=_wrapped(row), marker=".", **style
                )
        axes.set_xlabel("iteration")
        axes.set_ylabel(metric)
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="x-small")
    figure.suptitle(experiment.title, x=0.01, horizontalalignment="left")
    return figure


def _wrapped(row: Row) -> str:
    return textwrap.fill(row.label, 36)


def write_pictures(experiment: Experiment, results: Results, folder: Path) -> list[Path]:
    """Writes ``NAME_intervals.png`` and ``NAME_curves.png``; returns their paths.

    Args:
        experiment: NAME is its name.
        results: its finished runs, by row and seed.
        folder: made where it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, draw in (("intervals", intervals_figure), ("curves", curves_figure)):
        paths.append(folder / f"{experiment.name}_{kind}.png")
        draw(experiment, results).savefig(paths[-1], dpi=110)
    return paths


def _bootstrap(
    experiment: Experiment,
    results: Results,
    pair: tuple[str, str],
    metric: str,
    differences: Mapping[int, float],
) -> tuple[float, float]:
    pulls, expected = [], None
    for seed, difference in differences.items():
        own, other = (results[row, seed] for row in pair)
        expected = expected or other.units
        if not own.units == other.units == expected:
            raise ValueError(
                f"{experiment.path}: the runs {pair[0]}_{seed} and {pair[1]}_{seed} were scored on "
                "different scenes; run them again with --rerun"
            )
        of_row, of_other = own.without[metric], other.without[metric]
        pulls.append(influences(difference, np.subtract(of_row, of_other).tolist()))
    return two_way_interval(list(differences.values()), pulls)


def _primary_table(experiment: Experiment, results: Results, metric: str) -> Table:
    headline = metric == experiment.primary[0]
    compared = compare(experiment, results, metric)
    header = ["", "n", metric, "sd", "difference", "sd", "95 % interval (seeds)"]
    header += ["95 % interval (seeds, scenes)"] if headline else []
    digits = _digits(results, metric)
    rows = []
    for name, row in with_results(experiment, results):
        own = list(values(results, name, metric).values())
        sd = float(np.std(own, ddof=1)) if len(own) > 1 else None
        mean = float(np.mean(own)) if own else None
        cells = [row.label, str(len(own)), number(mean, digits), number(sd, digits)]
        rows.append([*cells, *_difference_cells(compared.get(name), digits, headline)])
    return Table(metric, [*header, "p (Holm)"], rows)


def _pairs_table(experiment: Experiment, results: Results) -> Table:
    """Returns the pairs of ``experiment.comparisons`` that two seeds or more have, by metric."""
    rows = []
    for metric in experiment.primary:
        compared = compare_pairs(experiment, results, metric, experiment.comparisons)
        for (first, second), found in compared.items():
            if found.difference is not None:
                cells = _difference_cells(found, _digits(results, metric), with_scenes=True)
                rows.append([f"{first} less {second}", metric, str(found.difference.n), *cells])
    header = ["rows, by name", "metric", "n", "difference", "sd", "95 % interval (seeds)"]
    return Table("rows compared", [*header, "95 % interval (seeds, scenes)", "p (Holm)"], rows)


def _difference_cells(found: Comparison | None, digits: int, with_scenes: bool) -> list[str]:
    """Returns difference, standard deviation, interval over seeds, that over seeds and scenes, and p."""
    if found is None or found.difference is None:
        return [""] * (5 if with_scenes else 4)
    difference = found.difference
    cells = [number(difference.mean, digits, sign=True), number(difference.sd, digits)]
    cells.append(_interval((difference.low, difference.high), digits))
    cells += [_interval(found.interval, digits)] if with_scenes else []
    return [*cells, f"{found.p:.3f}" if found.p is not None else ""]


def _secondary_table(experiment: Experiment, results: Results) -> Table:
    rows = []
    for name, row in with_results(experiment, results):
        cells = [row.label]
        for metric in experiment.secondary:
            own = list(values(results, name, metric).values())
            cells.append(number(float(np.mean(own)) if own else None, _digits(results, metric)))
        rows.append(cells)
    return Table("other scores", ["mean", *experiment.secondary], rows)


def _gradients_table(experiment: Experiment, results: Results) -> Table:
    """Returns the share of every distillation loss by part of the student: means over the seeds."""
    shares: dict[tuple[str, str], dict[str, list[float]]] = {}
    for name in experiment.rows:
        of_row = [result.content["gradients"] for (row, _), result in results.items() if row == name]
        for loss, by_part in ((loss, parts) for gradients in of_row for loss, parts in gradients.items()):
            collected = shares.setdefault((name, loss), defaultdict(list))
            for part, share in by_part.items():
                if share is not None:
                    collected[part].append(share)
    parts = list(dict.fromkeys(part for of in shares.values() for part in of))
    rows = [
        [experiment.rows[name].label, f"`{loss.removeprefix('loss_distill_')}`"]
        + [_percent(float(np.mean(of[part]))) if of.get(part) else "-" for part in parts]
        for (name, loss), of in shares.items()
    ]
    header = ["gradient at the end, of the detection losses'", "loss", *parts]
    return Table("gradients of the distillation losses", header, rows)


def _percent(share: float) -> str:
    """Returns a share in percent, with two digits below 10 %."""
    return f"{100 * share:{'.2g' if share < 0.1 else '.0f'}} %"


def with_results(experiment: Experiment, results: Results) -> list[tuple[str, Row]]:
    """Returns the rows that have a finished run, with their names, in the experiment's order.

    Args:
        experiment: its rows.
        results: finished runs, by row and seed.
    """
    found = {row for row, _ in results}
    return [(name, row) for name, row in experiment.rows.items() if name in found]


def _interval(ends: tuple[float, float] | None, digits: int) -> str:
    return " to ".join(number(end, digits, sign=True) for end in ends) if ends else ""
