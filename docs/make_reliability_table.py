"""Writes the table of docs/reliability.md from the results of ``python -m tests.reliability``.

python docs/make_reliability_table.py

The place is what lies between ``<!-- reliability -->`` and ``<!-- end of reliability -->``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "benchmarks" / "results" / "reliability"
PLACE = re.compile(r"(<!-- reliability -->\n).*?(<!-- end of reliability -->)", re.DOTALL)


def table(results: Path = RESULTS) -> str:
    """Returns the table of all result files, by name of the file."""
    rows = [
        (row["test"], row["cases"], row["survived"], f"`{content['command']}`")
        for content in (json.loads(path.read_text()) for path in sorted(results.glob("*.json")))
        for row in content["rows"]
    ]
    return tabulate(rows, headers=("test", "cases", "survived", "command"), tablefmt="github")


def filled(text: str, results: Path = RESULTS) -> str:
    """Returns the text of the page with the current table."""
    return PLACE.sub(lambda found: f"{found[1]}\n{table(results)}\n\n{found[2]}", text)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
