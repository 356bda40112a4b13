"""The tables of experiments in docs/ are those of the committed results."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from bevkd2.experiments import markdown, read_experiment, read_results
from tests.docs.pages import ROOT
from tests.experiments import tiny

SCRIPT = runpy.run_path(str(ROOT / "docs" / "make_results_tables.py"))


def names_in_pages() -> set[str]:
    places = SCRIPT["PLACES"]
    return {name for page in places.pages() for name in places.names(page.read_text())}


def filled(text: str, root: Path = ROOT) -> str:
    """The text of a page with the current tables."""
    current: str = SCRIPT["PLACES"].filled(text, lambda name: SCRIPT["body"](name, root))
    return current


def test_pages_are_current() -> None:
    for page in SCRIPT["PLACES"].pages():
        assert page.read_text() == filled(page.read_text()), "run make tables"


def test_every_experiment_with_results_is_in_a_page() -> None:
    there = {folder.name for folder in SCRIPT["RESULTS"].glob("*") if any(folder.glob("*.json"))}
    assert there <= names_in_pages()
    assert names_in_pages() <= {path.stem for path in (ROOT / "experiments").glob("*.yaml")}


def test_a_page_that_differs_from_the_results_is_found(tmp_path: Path) -> None:
    """The place gets the table and the pictures of the results, and changes with them."""
    experiment = tiny.marked(tmp_path, rows=[{"name": "plain"}, {"name": "better"}], seeds=[0, 1])
    (tmp_path / "experiments").mkdir()
    path = tmp_path / "experiments" / "tiny.yaml"
    experiment.path.rename(path)
    experiment = read_experiment(path)
    results = tmp_path / "benchmarks" / "results" / "experiments"
    page = "before\n<!-- experiment tiny -->\nold\n<!-- end of experiment tiny -->\nafter\n"
    empty = filled(page, tmp_path)
    assert "No run of `tiny.yaml` is finished." in empty and "old" not in empty and ".png" not in empty
    tiny.invent(experiment, results, {"plain": {0: 0.2, 1: 0.3}, "better": {0: 0.3, 1: 0.5}})
    current = filled(empty, tmp_path)
    assert markdown(experiment, read_results(results, experiment)) in current
    assert current.startswith("before\n") and current.endswith("<!-- end of experiment tiny -->\nafter\n")
    assert "(experiments/tiny_intervals.png)" in current and filled(current, tmp_path) == current
    tiny.invent(experiment, results, {"better": {1: 0.6}})
    assert filled(current, tmp_path) != current


def test_a_place_without_experiment_is_named(tmp_path: Path) -> None:
    page = "<!-- experiment gone -->\n<!-- end of experiment gone -->\n"
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml does not exist"):
        filled(page, tmp_path)
