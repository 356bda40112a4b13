"""Writes the table of docs/reliability.md from the results of ``python -m tests.reliability``.

python docs/make_reliability_table.py

The page has one place, without a name (page_tables.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import page_tables
from page_tables import Places, markdown_table

RESULTS = page_tables.RESULTS / "reliability"
PLACES = Places("reliability")


def table(results: Path = RESULTS) -> str:
    """Returns the table of all result files, by name of the file."""
    rows = [
        (row["test"], row["cases"], row["survived"], f"`{content['command']}`")
        for content in (json.loads(path.read_text()) for path in sorted(results.glob("*.json")))
        for row in content["rows"]
    ]
    return markdown_table(rows, ("test", "cases", "survived", "command"))


if __name__ == "__main__":
    PLACES.write(lambda name: table())
