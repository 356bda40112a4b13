"""Writes the tables of the CUDA kernels in docs/benchmarks.md from benchmarks/results/cuda_kernels.json.

python docs/make_cuda_tables.py

A place is what lies between ``<!-- cuda NAME -->`` and ``<!-- end of cuda NAME -->``, NAME one of ``TABLES``.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULT = ROOT / "benchmarks" / "results" / "cuda_kernels.json"
PLACE = re.compile(r"(<!-- cuda (\w+) -->\n).*?(<!-- end of cuda \2 -->)", re.DOTALL)


def summary(content: dict[str, Any]) -> str:
    """Returns what holds for all kernels."""
    found = content["kernels"]
    builds = [on for row in found for on in row["sm"].values()]
    architectures = ", ".join(f"sm_{arch}" for arch in found[0]["sm"])
    most, spilling = max(on["registers"] for on in builds), sum(on["spilled"] > 0 for on in builds)
    text = (
        f"nvcc {content['nvcc']} with the headers of torch {content['torch']}, for {architectures}: "
        f"{len(found)} kernels, each type counted, have at most {most} registers; {spilling} of them spill. "
        f"The lowest occupancy is {min(on['occupancy'] for on in builds):.0%}."
    )
    return textwrap.fill(text, 100)


def kernels(content: dict[str, Any]) -> str:
    """Returns the table of the kernels for float32 and bfloat16, or without a type."""
    rows = [
        [
            Path(row["source"]).stem.replace("_cuda", ""),
            f"`{row['kernel']}`",
            row["threads"],
            f"{row['dynamic_shared'] + max(on['static_shared'] for on in row['sm'].values()):,}",
            *(_each(row, key) for key in ("registers", "blocks")),
            _each(row, "occupancy", "{:.0%}"),
            _each(row, "limit", "{}"),
        ]
        for row in content["kernels"]
        if not re.search(r"double|Half|false|, 1>", row["kernel"])
    ]
    header = ["file", "kernel", "threads", "shared (bytes)", "registers", "blocks", "occupancy", "limited by"]
    return _table(rows, header)


def points(content: dict[str, Any]) -> str:
    """Returns the table of bytes and operations per point of deformable attention."""
    rows = [
        [
            f"{row['case']}, {row['dtype']}, {row['part']}",
            f"{row['points'] / 1e6:.2f} M",
            f"{row['memory_bytes_per_point']:.1f}",
            row["l1_bytes_per_point"],
            row["reduced_bytes_per_point"],
            f"{row['flops_per_point']:.0f}",
            f"{row['flops_per_memory_byte']:.1f}",
            f"{row['flops_per_l1_byte']:.2f}",
        ]
        for row in content["paper"]
    ]
    sizes = [f"{name} (bytes)" for name in ("memory", "L1", "reductions")]
    return _table(rows, ["case", "points", *sizes, "operations", "per byte of memory", "per byte of L1"])


def roofline(content: dict[str, Any]) -> str:
    """Returns the table of the least microseconds by GPU."""
    gpus = list(content["paper"][0]["microseconds"])
    rows = []
    for row in content["paper"]:
        cells = []
        for times in row["microseconds"].values():
            limit = max(times, key=lambda name: times[name])
            memory = "" if limit == "memory" else f", memory {times['memory']:.0f}"
            cells.append(f"{times[limit]:.0f} ({limit}){memory}")
        rows.append([f"{row['case']}, {row['dtype']}, {row['part']}", *cells])
    return _table(rows, ["microseconds at least, on paper", *gpus])


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "summary": summary,
    "kernels": kernels,
    "points": points,
    "roofline": roofline,
}


def filled(text: str, result: Path = RESULT) -> str:
    """Returns the text of the page with the current tables."""
    content = json.loads(result.read_text())
    return PLACE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]](content)}\n\n{found[3]}", text)


def _each(row: dict[str, Any], key: str, form: str = "{:,}") -> str:
    """Returns a number of each architecture, or the number once if it is the same on all."""
    cells = [form.format(on[key]) for on in row["sm"].values()]
    return cells[0] if len(set(cells)) == 1 else ", ".join(cells)


def _table(rows: list[list[Any]], header: list[str]) -> str:
    """Returns a table as mdformat writes it, so that it may format the rest of the page."""
    lines = [[str(cell) for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
