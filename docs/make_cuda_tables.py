"""Writes the tables of the CUDA kernels in docs/benchmarks.md from benchmarks/results/cuda_kernels.json.

python docs/make_cuda_tables.py

The name of a place (page_tables.py) is one of ``TABLES``.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from page_tables import RESULTS, Places, markdown_table

RESULT = RESULTS / "cuda_kernels.json"
PLACES = Places("cuda")


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
            *(each(row, key) for key in ("registers", "blocks")),
            each(row, "occupancy", "{:.0%}"),
            each(row, "limit", "{}"),
        ]
        for row in content["kernels"]
        if not re.search(r"double|Half|false|, 1>", row["kernel"])
    ]
    header = ["file", "kernel", "threads", "shared (bytes)", "registers", "blocks", "occupancy", "limited by"]
    return markdown_table(rows, header)


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
    return markdown_table(
        rows, ["case", "points", *sizes, "operations", "per byte of memory", "per byte of L1"]
    )


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
    return markdown_table(rows, ["microseconds at least, on paper", *gpus])


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "summary": summary,
    "kernels": kernels,
    "points": points,
    "roofline": roofline,
}


def body(name: str, result: Path = RESULT) -> str:
    """Returns one of ``TABLES``."""
    return TABLES[name](json.loads(result.read_text()))


def each(row: dict[str, Any], key: str, form: str = "{:,}") -> str:
    """Returns a number of each architecture, or the number once if it is the same on all."""
    cells = [form.format(on[key]) for on in row["sm"].values()]
    return cells[0] if len(set(cells)) == 1 else ", ".join(cells)


if __name__ == "__main__":
    PLACES.write(body)
