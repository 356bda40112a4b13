"""Charts as SVG: where marks are, what they say, and that text stays text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from bevkd2.report.charts import Spread, bar_chart, color_class, interval_chart, line_chart

NAN = float("nan")


def elements(svg: str, tag: str, kind: str = "") -> list[ElementTree.Element]:
    """The elements of a drawing, which must be well-formed."""
    return [
        e for e in ElementTree.fromstring(svg).iter(tag) if not kind or kind in e.get("class", "").split()
    ]


def polyline(svg: str, number: int = 0) -> list[tuple[float, float]]:
    pairs = elements(svg, "polyline")[number].get("points", "").split()
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in pairs)]


def test_lines_follow_the_values_and_gaps_are_left_out() -> None:
    lines = {"a": [(0, 1.0), (5, NAN), (10, 3.0)], "b": [(0, 2.0)], "empty": [(0, NAN)]}
    svg = line_chart("loss", lines, {"a": 0, "b": 1, "empty": 2}).svg
    (x0, y0), (x1, y1) = polyline(svg)
    assert x0 < x1 and y0 > y1  # larger values are higher
    b = elements(svg, "circle", "s1")
    assert len(b) == 1 and float(b[0].get("cy", "")) == pytest.approx((y0 + y1) / 2, abs=0.1)
    assert len(elements(svg, "polyline")) == 2
    assert 'aria-label="loss over iteration; last values: a 3; b 2"' in svg


def test_many_points_are_means_of_groups() -> None:
    points = [(float(x), float(x % 2)) for x in range(1200)]
    drawn = polyline(line_chart("loss", {"a": points}, {"a": 0}).svg)
    assert len(drawn) == 300 and len({y for _, y in drawn}) == 1  # four points a group: the mean is 0.5


def test_an_axis_is_logarithmic_where_values_differ_a_lot() -> None:
    svg = line_chart("loss", {"a": [(0, 0.01), (1, 1.0), (2, 100.0)]}, {"a": 0}).svg
    ys = [y for _, y in polyline(svg)]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2) and "y in logarithms" in svg
    assert "y in logarithms" not in line_chart("loss", {"a": [(0, 0.0), (1, 99.0)]}, {"a": 0}).svg


@pytest.mark.parametrize("points", [[(60, 0.5)], [(60, 0.0)], [(1, 7.0), (2, 7.0)]])
def test_one_value_alone_has_a_chart(points: list[tuple[float, float]]) -> None:
    svg = line_chart("loss", {"a": points}, {"a": 0}).svg
    assert len(elements(svg, "circle", "dot")) == len(points) and "nan" not in svg.lower()


def test_no_finite_value_is_said() -> None:
    assert line_chart("loss", {"a": [(0, NAN)]}, {"a": 0}).svg == '<p class="note">no finite value</p>'


def test_bars_are_as_long_as_their_values() -> None:
    groups = {"car": {"a": 0.5, "b": 0.25}, "bus": {"a": None, "b": 1.5}, "cone": {"a": None, "b": None}}
    svg = bar_chart("AP", groups, {"a": 0, "b": 1}, digits=2, largest=1.0).svg
    widths = [float(bar.get("width", "")) for bar in elements(svg, "rect")]
    assert widths[0] == 2 * widths[1] and widths[2] == 0 and widths[3] == 2 * widths[0]  # a bar ends at 1.0
    texts = [text.text for text in elements(svg, "text", "value")]
    assert texts == ["0.50", "0.25", "not evaluated", "1.50"]
    assert [text.text for text in elements(svg, "text", "start")] == ["not evaluated"]  # once for all runs
    assert "car: a 0.50, b 0.25; bus: a not evaluated, b 1.50" in svg


def test_an_interval_is_drawn_only_where_there_is_one() -> None:
    rows = [Spread("two", [0.1, 0.3], 0.2, -1.0, 1.4), Spread("one", [0.5])]
    svg = interval_chart("mAP", rows, "difference", 2).svg
    assert len(elements(svg, "line", "interval")) == len(elements(svg, "circle", "mean")) == 1
    assert len(elements(svg, "circle", "seed")) == 3
    assert "two: +0.20, -1.00 to +1.40; one: one run, no interval" in svg


def test_text_stays_text() -> None:
    name = '</svg><script>"x"</script>'
    charts = [
        line_chart(name, {name: [(0, 1.0), (1, 2.0)]}, {name: 0}, x_label=name),
        bar_chart(name, {name: {name: 0.5}}, {name: 0}, digits=1, missing=name),
        interval_chart(name, [Spread(name, [0.5])], name, 2),
    ]
    for chart in charts:
        assert not elements(chart.svg, "script") and "<script" not in chart.svg
        assert any(name[:10] in (text.text or "") for text in elements(chart.svg, "text"))


def test_more_runs_than_colours_are_dashed() -> None:
    classes = [color_class(place) for place in range(16)]
    assert len(set(classes)) == 16 and all(re.fullmatch(r"s\d( dashed)?", name) for name in classes)
