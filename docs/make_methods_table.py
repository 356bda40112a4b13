"""Writes the table of docs/methods.md: every distillation method, and what a step with it costs.

python docs/make_methods_table.py

What a method is comes from its module's and its class's first docstring lines and from its config node; what
it costs from benchmarks/results/methods.json (python -m benchmarks.bench_methods).
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import page_tables
from page_tables import Places

from bevkd2.config import get_cfg
from bevkd2.distill import DISTILL_REGISTRY

RESULTS = page_tables.RESULTS / "methods.json"
PLACES = Places("methods")
PAIRS = {"bevformer": "BEVFormer", "pgd": "PGD"}
HEADER = [
    "method",
    "idea",
    "source",
    "reads",
    "weight",
    "parameters",
    *(f"step, {name}" for name in PAIRS.values()),
    *(f"MiB, {name}" for name in PAIRS.values()),
]


def rows(costs: dict[str, Any]) -> list[list[str]]:
    """Returns a row of cells per method, in the order of their names."""
    cfg = get_cfg()
    own = {n: m for n, m in DISTILL_REGISTRY if m.__module__.startswith("bevkd2.")}
    return [row(name, own[name], cfg.DISTILL[own[name].node], costs) for name in sorted(own, key=str.lower)]


def row(name: str, method: Any, node: Any, costs: dict[str, Any]) -> list[str]:
    """Returns the cells of a method."""
    source = re.search(r"\((.*)\)", first_line(sys.modules[method.__module__].__doc__))
    reads = node.SOURCES if "SOURCES" in node else sorted(method.requires)
    measured = [costs[pair]["methods"].get(name) for pair in PAIRS]
    counts = [f"{found['parameters']:,}" if found else "" for found in measured]
    return [
        f"`{name}`",
        first_line(method.__doc__).rstrip("."),
        source.group(1) if source else "",
        ", ".join(f"`{field}`" for field in reads),
        f"{node.WEIGHT:g}",
        " / ".join(filter(None, dict.fromkeys(counts))),
        *(f"{found['step_over_student']:.2f}" if found else "" for found in measured),
        *(f"{found['extra_memory_mib']:+.0f}" if found else "" for found in measured),
    ]


def first_line(docstring: str | None) -> str:
    """Returns the first paragraph of a docstring, in one line."""
    return " ".join((docstring or "").strip().split("\n\n")[0].split())


def table() -> str:
    """Returns the Markdown of the table."""
    costs = json.loads(RESULTS.read_text())
    lines = [HEADER, ["---"] * len(HEADER), *rows(costs)]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)
    return f"{text}\n\n{teachers(costs)}"


def teachers(costs: dict[str, Any]) -> str:
    """Returns the sentence about the teacher's passes."""
    shares = [
        f"{costs[pair]['teacher_seconds']['needed'] / costs[pair]['teacher_seconds']['full']:.2f} ({name})"
        for pair, name in PAIRS.items()
    ]
    return (
        "A pass of the teacher that computes only what the pair's own methods need took\n"
        f"{' and '.join(shares)} of a full pass."
    )


if __name__ == "__main__":
    PLACES.write(lambda name: table())
