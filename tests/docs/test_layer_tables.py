"""The tables of attention layers in docs/benchmarks.md are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from make_layer_tables import PLACES, tables


def test_page_is_current() -> None:
    (page,) = PLACES.pages()
    text = page.read_text()
    assert text == PLACES.filled(text, lambda _: tables()), "run make tables"


def test_a_place_without_results_says_so(tmp_path: Path) -> None:
    assert tables(tmp_path) == "Not measured yet."


def row(baseline: str, part: str, ratio: float | None, reason: str = "") -> dict[str, Any]:
    measured = {"ratio": ratio, "baseline_ms": None if ratio is None else 200 * ratio}
    return {"case": "a", "baseline": baseline, "part": part, "ours_ms": 200.0, "reason": reason} | measured


def test_a_machine_has_a_table(tmp_path: Path) -> None:
    rows = [
        row("b", "forward", 2.5),
        row("c", "forward", None, "not installed: pip install c"),
        row("b", "forward + backward", 1.5),
    ]
    machine = {"gpu": "none", "processor": "P", "threads": 2, "torch": "2"}
    (tmp_path / "p.json").write_text(json.dumps({"machine": machine, "rows": rows}))
    page = tables(tmp_path)
    assert "P, 2 threads, torch 2:" in page
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|"
    ]
    assert cells[0] == ["layer", "op", "forward (ms)", "forward + backward (ms)"]
    assert cells[2:] == [
        ["a", "bevkd2", "200", "200"],
        ["a", "b", "500, 2.50 x", "300, 1.50 x"],
        ["a", "c", "not installed", ""],
    ]
