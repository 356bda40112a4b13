"""Charts as inline SVG, whose colours are those of the page's style sheet, light or dark.

A chart is about as wide as a phone, so that its text has its natural size on one and beside others on a wide
page. Colours are classes: ``s0``, ``s1``, ... by the place of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator

COLORS = 8
"""Runs beyond these have the same colours, dashed."""

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 34
_MOST_POINTS = 300
_LOG_FROM = 30.0  # ratio of the largest to the smallest value from which an axis is logarithmic
_BAR, _LABEL_WIDTH, _VALUE_WIDTH = 12, 104, 46
_ROW = 26


@dataclass(frozen=True)
class Chart:
    """A chart and its title.

    Attributes:
        title: written above it.
        svg: the drawing.
    """

    title: str
    svg: Markup


@dataclass(frozen=True)
class Spread:
    """A row of an interval chart.

    Attributes:
        label: of the row.
        single: one value a seed.
        mean: of them; None where there is one run or none.
        low, high: ends of the interval; None as ``mean``.
    """

    label: str
    single: Sequence[float]
    mean: float | None = None
    low: float | None = None
    high: float | None = None


def color_class(place: int) -> str:
    """Returns the classes of the run at a place."""
    return f"s{place % COLORS}" + (" dashed" if place // COLORS % 2 else "")


def line_chart(
    title: str,
    lines: Mapping[str, Points],
    places: Mapping[str, int],
    *,
    x_label: str = "iteration",
    unit_square: bool = False,
) -> Chart:
    """Draws lines.

    Args:
        title: of the chart.
        lines: run -> x, y in order; points that are not finite are left out, and of many points groups are
            averaged.
        places: run -> its place, which gives its colour.
        x_label: below the x axis.
        unit_square: whether both axes are [0, 1]; else they follow the values, the y axis in logarithms where
            they differ a lot.
    """
    kept = {run: _thinned([p for p in points if all(map(math.isfinite, p))]) for run, points in lines.items()}
    kept = {run: points for run, points in kept.items() if points}
    xs, ys = ([p[axis] for points in kept.values() for p in points] for axis in (0, 1))
    if not xs:
        return Chart(title, Markup('<p class="note">no finite value</p>'))
    log = not unit_square and min(ys) > 0 and max(ys) > _LOG_FROM * min(ys)
    x_axis = _Axis([0, 1] if unit_square else xs, _LEFT, _WIDTH - _RIGHT)
    y_axis = _Axis([0, 1] if unit_square else ys, _HEIGHT - _BOTTOM, _TOP, log=log)
    parts = [_grid(x_axis, y_axis, x_label + (", y in logarithms" if log else ""))]
    for run, points in kept.items():
        path = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in points)
        color = color_class(places[run])
        line = Markup('<polyline class="line {}" points="{}"><title>{}</title></polyline>')
        parts.append(line.format(color, path, run))
        if len(points) <= 12:  # few evaluations: each is seen
            dot = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>')
            parts += [
                dot.format(color, x_axis.at(x), y_axis.at(y), f"{run}, {x:g}: {y:.4g}") for x, y in points
            ]
    ends = "; ".join(f"{run} {points[-1][1]:.4g}" for run, points in kept.items())
    return Chart(title, _svg(_HEIGHT, f"{title} over {x_label}; last values: {ends}", parts))


def bar_chart(
    title: str,
    groups: Mapping[str, Mapping[str, float | None]],
    places: Mapping[str, int],
    *,
    digits: int,
    largest: float | None = None,
    missing: str = "not evaluated",
) -> Chart:
    """Draws horizontal bars, a group of runs for each class.

    Args:
        title: of the chart.
        groups: class -> run -> value, not negative; None has no bar.
        places: run -> its place, which gives its colour.
        digits: behind the point of the written values.
        largest: value of a full bar; by default the largest there is.
        missing: written in place of a bar.
    """
    values = [v for runs in groups.values() for v in runs.values() if v is not None]
    full = largest or max(values, default=0.0) or 1.0
    widest = _WIDTH - _LABEL_WIDTH - _VALUE_WIDTH
    parts, y = [], 4.0
    for name, runs in groups.items():
        middle = y + _BAR * len(runs) / 2
        label = Markup('<text class="label" x="{}" y="{:.1f}">{}</text>')
        parts.append(label.format(_LABEL_WIDTH - 6, middle + 4, _short(name, 16)))
        if all(value is None for value in runs.values()):
            undefined = Markup('<text class="tick start" x="{}" y="{:.1f}">{}</text>')
            parts.append(undefined.format(_LABEL_WIDTH + 4, middle + 4, missing))
            y += _BAR * len(runs) + 8
            continue
        for run, value in runs.items():
            length = 0.0 if value is None else widest * min(max(value / full, 0.0), 1.0)
            text = missing if value is None else f"{value:.{digits}f}"
            bar = Markup(
                '<rect class="bar {}" x="{}" y="{:.1f}" width="{:.1f}" height="{}"><title>{}</title></rect>'
                '<text class="value" x="{:.1f}" y="{:.1f}">{}</text>'
            )
            where = (_LABEL_WIDTH, y + 1, length, _BAR - 2)
            end = (_LABEL_WIDTH + length + 4, y + _BAR - 2)
            parts.append(bar.format(color_class(places[run]), *where, f"{name}, {run}: {text}", *end, text))
            y += _BAR
        y += 8
    told = "; ".join(f"{name}: {_told(runs, digits, missing)}" for name, runs in groups.items())
    return Chart(title, _svg(y, f"{title}. {told}", parts))


def interval_chart(title: str, rows: Sequence[Spread], x_label: str, digits: int) -> Chart:
    """Draws a dot a seed, and where there are several the mean and its interval.

    Args:
        title: of the chart.
        rows: from top to bottom.
        x_label: below the axis.
        digits: behind the point of the values in the description.
    """
    values = [
        0.0,
        *(value for row in rows for value in (*row.single, row.low, row.high) if value is not None),
    ]
    x_axis = _Axis(values, 12, _WIDTH - 12)
    height = 8 + 2 * _ROW * len(rows) + _BOTTOM
    parts = [_vertical(x_axis, 4, height - _BOTTOM), _x_label(x_axis, height, x_label)]
    zero = Markup('<line class="zero" x1="{0:.1f}" x2="{0:.1f}" y1="4" y2="{1}"/>')
    parts.append(zero.format(x_axis.at(0.0), height - _BOTTOM))
    told = []
    for number, row in enumerate(rows):
        y = 8 + 2 * _ROW * number
        parts.append(
            Markup('<text class="row" x="12" y="{}">{}</text>').format(y + 12, _short(row.label, 52))
        )
        y += _ROW + 2
        dots = Markup('<circle class="seed" cx="{:.1f}" cy="{}" r="3"/>')
        parts += [dots.format(x_axis.at(value), y) for value in row.single]
        if row.mean is None or row.low is None or row.high is None:
            told.append(f"{row.label}: one run, no interval")
            continue
        bar = Markup('<line class="interval" x1="{:.1f}" x2="{:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(bar.format(x_axis.at(row.low), x_axis.at(row.high), y=y))
        parts.append(
            Markup('<circle class="mean" cx="{:.1f}" cy="{}" r="5"/>').format(x_axis.at(row.mean), y)
        )
        ends = (f"{value:+.{digits}f}" for value in (row.mean, row.low, row.high))
        told.append("{}: {}, {} to {}".format(row.label, *ends))
    return Chart(title, _svg(height, f"{title}. {'; '.join(told)}", parts))


class _Axis:
    """Values to places in the drawing, and ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool = False) -> None:
        low, high = min(values), max(values)
        single = low == high
        if single:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        self._start, self._end = start, end
        self._scale: Callable[[float], float] = math.log10 if log else float
        self._low, self._high = self._scale(low), self._scale(high)
        locator = LogLocator(subs=(1.0, 3.0), numticks=6) if log else MaxNLocator(nbins=4)
        slack = 1e-9 * (high - low)
        found = (float(tick) for tick in locator.tick_values(low, high))
        self.ticks = (
            [values[0]] if single else [tick for tick in found if low - slack <= tick <= high + slack]
        )

    def at(self, value: float) -> float:
        """Returns the place of a value."""
        return self._start + (self._scale(value) - self._low) / (self._high - self._low) * (
            self._end - self._start
        )


def _grid(x_axis: _Axis, y_axis: _Axis, x_label: str) -> Markup:
    parts = [_vertical(x_axis, _TOP, _HEIGHT - _BOTTOM), _x_label(x_axis, _HEIGHT, x_label)]
    line = Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>'
        '<text class="label" x="{}" y="{text:.1f}">{tick:g}</text>'
    )
    for tick in y_axis.ticks:
        y = y_axis.at(tick)
        parts.append(line.format(_LEFT, _WIDTH - _RIGHT, _LEFT - 5, y=y, text=y + 4, tick=tick))
    return Markup("").join(parts)


def _vertical(axis: _Axis, top: float, bottom: float) -> Markup:
    line = Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>')
    return Markup("").join(line.format(axis.at(tick), top, bottom) for tick in axis.ticks)


def _x_label(axis: _Axis, height: float, text: str) -> Markup:
    tick_text = Markup('<text class="tick" x="{:.1f}" y="{:.1f}">{:g}</text>')
    parts = [tick_text.format(axis.at(tick), height - 20, tick) for tick in axis.ticks]
    parts.append(
        Markup('<text class="tick" x="{}" y="{:.1f}">{}</text>').format(_WIDTH / 2, height - 5, text)
    )
    return Markup("").join(parts)


def _svg(height: float, description: str, parts: Iterable[Markup]) -> Markup:
    frame = Markup('<svg class="chart" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>')
    return frame.format(_WIDTH, height, description, Markup("").join(parts))


def _told(runs: Mapping[str, float | None], digits: int, missing: str) -> str:
    texts = (f"{run} {missing if v is None else format(v, f'.{digits}f')}" for run, v in runs.items())
    return ", ".join(texts)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the points, or means of equal groups of them where there are more than can be seen."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    groups = np.array_split(np.array(points, dtype=np.float64), _MOST_POINTS)
    return [(float(x), float(y)) for x, y in (group.mean(axis=0) for group in groups)]
