"""The tables of docs/demo.md are those that the demos printed, in docs/logs."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT

MODELS = ("T (teacher)", "S (student)", "S + paper's method", "S + recommended")


@pytest.mark.parametrize(("log", "place"), [("demo", 0), ("demo_mono", 1)])
def test_numbers_are_those_of_the_log(log: str, place: int) -> None:
    printed = (ROOT / "docs" / "logs" / f"{log}.txt").read_text()
    page = (ROOT / "docs" / "demo.md").read_text()
    for model in MODELS:
        (line,) = re.findall(rf"^{re.escape(model)}  +(\d.*)$", printed, re.MULTILINE)
        shown = re.findall(rf"^\| {re.escape(model)} +\|(.*)\|$", page, re.MULTILINE)[place]
        for cell, number in zip(shown.split("|"), line.split(), strict=False):  # the page has no FPS
            last_place = 10.0 ** -len(cell.strip().partition(".")[2])
            assert abs(float(cell) - float(number)) < 0.51 * last_place, (model, cell, number)
