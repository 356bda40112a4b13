"""Writes the tables of attention layers in docs/benchmarks.md from benchmarks/results/layers.

python docs/make_layer_tables.py

The place (page_tables.py) has one table per machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import page_tables
from page_tables import Places, markdown_table, three_digits

RESULTS = page_tables.RESULTS / "layers"
PLACES = Places("layers")
PARTS = ("forward", "forward + backward")


def tables(results: Path = RESULTS) -> str:
    """Returns the tables of all machines, each below a line that names it, or that there are none yet."""
    parts = []
    for path in sorted(results.glob("*.json")):
        report = json.loads(path.read_text())
        on = report["machine"]
        device = on["gpu"] if on["gpu"] != "none" else on["processor"]
        threads = f"{on['threads']} thread{'s' * (on['threads'] > 1)}"
        parts.append(f"{device}, {threads}, torch {on['torch']}:\n\n{table(report['rows'])}")
    return "\n\n".join(parts) or "Not measured yet."


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the table of one machine: ms, and how many times as long as ours, by layer, op and part."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cells.setdefault((row["case"], "bevkd2"), {})[row["part"]] = three_digits(row["ours_ms"])
    for row in rows:
        cells.setdefault((row["case"], row["baseline"]), {})[row["part"]] = _baseline(row)
    layers = list(dict.fromkeys(row["case"] for row in rows))
    ordered = sorted(cells, key=lambda key: layers.index(key[0]))
    lines = [[*key, *(cells[key].get(part, "") for part in PARTS)] for key in ordered]
    header = ["layer", "op", *(f"{part} (ms)" for part in PARTS)]
    return markdown_table(lines, header)


def _baseline(row: dict[str, Any]) -> str:
    if row["ratio"] is None:
        return str(row["reason"].partition(":")[0])
    return f"{three_digits(row['baseline_ms'])}, {row['ratio']:.2f} x"


if __name__ == "__main__":
    PLACES.write(lambda _: tables())
