"""Writes the table of docs/reliability.md from the results of ``python -m tests.reliability``.

python docs/make_reliability_table.py

The page has one place, without a name (page_tables.py).
"""

from __future__ import annotations

import json
import textwrap
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


def origin(results: Path = RESULTS) -> str:
    """Returns which result is the oldest, which the newest, and which do not say when they were made."""
    contents = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    dated = sorted((content["date"], name) for name, content in contents.items() if "date" in content)
    sentences = []
    for word, (date, name) in zip(("Oldest", "Newest"), (dated[0], dated[-1]) if dated else (), strict=False):
        content = contents[name]
        commit = content["commit"] or "unknown"  # outside a repository
        shown = commit if commit == "unknown" else commit[:7] + "+" * commit.endswith("+")
        sentences.append(
            f"{word} result: `{name}` of {date}, commit {shown}, torch {content['torch']}, "
            f"{content['machine']}."
        )
    without = [f"`{name}`" for name, content in contents.items() if "date" not in content]
    if without:
        sentences.append(f"From before dates and commits were recorded: {', '.join(without)}.")
    return textwrap.fill(" ".join(sentences), 100, break_long_words=False, break_on_hyphens=False)


def body(results: Path = RESULTS) -> str:
    """Returns the table, and which results it is from."""
    return f"{table(results)}\n\n{origin(results)}"


if __name__ == "__main__":
    PLACES.write(lambda name: body())
