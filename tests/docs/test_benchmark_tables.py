"""The tables of measurements in docs/ are those of the committed results."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

SCRIPT = runpy.run_path(str(ROOT / "docs" / "make_benchmark_tables.py"))
PLACES = SCRIPT["PLACES"]
NAMES = [(page.name, name) for page in PLACES.pages() for name in PLACES.names(page.read_text())]


@pytest.mark.parametrize("page", PLACES.pages(), ids=lambda page: page.name)
def test_page_is_current(page: Path) -> None:
    text = page.read_text()
    assert text == PLACES.filled(text, SCRIPT["body"]), "run make tables"


def test_every_table_is_in_a_page() -> None:
    assert {name.split()[0] for _, name in NAMES} == set(SCRIPT["TABLES"])


def test_every_result_file_is_in_a_page() -> None:
    """The files that are left out have scripts of their own, as results in folders have."""
    files = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    files -= {"methods", "cuda_kernels"}
    assert {file for _, name in NAMES for file in name.split()[1:]} == files


def test_a_changed_result_changes_the_table(tmp_path: Path) -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "loader.json").read_text())
    found["images_per_cpu_second"]["decode, half"] = 81.2
    (tmp_path / "other.json").write_text(json.dumps(found))
    lines = SCRIPT["body"]("loader other", tmp_path).splitlines()
    assert [cell.strip() for cell in lines[3].split("|")][1:4] == [
        *("decoding and resizing to half", "81", "123")
    ]


def test_a_baseline_that_was_not_measured_has_no_column(tmp_path: Path) -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "intel_xeon_2_cores.json").read_text())
    for row in found["rows"]:
        if row["baseline"] == "torch-ms-deform-attn":
            row["ratio"] = row["baseline_ms"] = None
    (tmp_path / "machine.json").write_text(json.dumps(found))
    header, _, first, *_ = SCRIPT["body"]("attention machine", tmp_path).splitlines()
    assert header.count("grid_sample") == 2 and "torch-ms" not in header
    assert first.count("|") == header.count("|") == 6


def test_an_unknown_table_and_file_are_named() -> None:
    with pytest.raises(KeyError, match=r"no table 'gone'; expected one of attention, threads"):
        SCRIPT["body"]("gone loader")
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        SCRIPT["body"]("loader gone")
