"""The tables of attention layers in docs/benchmarks.md are those of the committed results."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

from tests.docs.pages import ROOT

SCRIPT = runpy.run_path(str(ROOT / "docs" / "make_layer_tables.py"))


def test_page_is_current() -> None:
    text = SCRIPT["PAGE"].read_text()
    assert SCRIPT["PLACE"].search(text)
    assert text == SCRIPT["filled"](text), "run python docs/make_layer_tables.py"


def test_a_place_without_results_says_so(tmp_path: Path) -> None:
    assert SCRIPT["tables"](tmp_path) == "Not measured yet."


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
    page = SCRIPT["filled"]("x\n<!-- layers -->\nold\n<!-- end of layers -->\ny\n", tmp_path)
    assert "P, 2 threads, torch 2:" in page and "old" not in page and page.endswith("layers -->\ny\n")
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|"
    ]
    assert cells[0] == ["layer", "op", "forward (ms)", "forward + backward (ms)"]
    assert cells[2:] == [
        ["a", "bevkd2", "200", "200"],
        ["a", "b", "500, 2.50 x", "300, 1.50 x"],
        ["a", "c", "not installed", ""],
    ]
