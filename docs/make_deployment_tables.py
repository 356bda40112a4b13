"""Writes the tables of docs/deployment.md from benchmarks/results/deployment.

python docs/make_deployment_tables.py

The name of a place (page_tables.py) is one of ``TABLES``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import page_tables
from page_tables import Places, markdown_table

RESULTS = page_tables.RESULTS / "deployment"
PLACES = Places("deployment")
TEACHERS = {"demo_teacher": "BEVFormer, 24 scenes", "demo_mono_teacher": "PGD, KITTI layout"}
"""Names of result files -> what the tables call them."""


def read(name: str, results: Path) -> dict[str, Any]:
    """Returns what a result file holds."""
    content: dict[str, Any] = json.loads((results / f"{name}.json").read_text())
    return content


def verification(results: Path) -> str:
    """Returns the table of the comparison with PyTorch."""
    header = ["model", "frames", "objects", "at the end", "boxes", "scores", "metrics"]
    rows = []
    for name, title in TEACHERS.items():
        found = read(name, results)
        differences = (found["boxes"], found["scores"], found["metrics"]["largest_difference"])
        rows.append(
            [
                title,
                found["frames"],
                f"{found['objects']:,}",
                f"{found['at_the_end']:,}",
                *(f"{difference:.1e}" for difference in differences),
            ]
        )
    return markdown_table(rows, header)


def precision(results: Path) -> str:
    """Returns the table of files of lower precision: size and metrics beside float32."""
    rows = []
    for path, title in _of_teachers("files", results):
        for row in json.loads(path.read_text())["rows"]:
            rows.append([title, row["name"], f"{row['megabytes']:.1f} MB", *_scores(row)])
    return markdown_table(rows, ["model", "precision", "file", "metrics", "lost", "shift", "score"])


def groups(results: Path) -> str:
    """Returns the table of what int8 costs in each group of modules."""
    rows = []
    for path, title in _of_teachers("groups", results):
        for row in json.loads(path.read_text())["rows"]:
            in_int8 = "nothing" if row["name"] == "float32" else row["name"]
            rows.append([title, in_int8, row["operators"], f"{row['megabytes']:.1f} MB", *_scores(row)])
    return markdown_table(
        rows, ["model", "in int8", "operators", "file", "metrics", "lost", "shift", "score"]
    )


def _of_teachers(kind: str, results: Path) -> list[tuple[Path, str]]:
    """Returns the result files of a kind that are there, and the models' names."""
    paths = [(results / f"{kind}_{name}.json", title.split(",")[0]) for name, title in TEACHERS.items()]
    found = [(path, title) for path, title in paths if path.is_file()]
    if not found:
        raise FileNotFoundError(2, "no such file", str(paths[0][0]))
    return found


def sizes(results: Path) -> str:
    """Returns the table of full-size exports."""
    header = ["configs", "images", "parameters", "nodes", "file", "export", "peak memory"]
    rows = []
    for found in read("export_sizes", results)["models"]:
        configs = ", ".join(f"`{name}`" for name in found["configs"])
        if "failed" in found:
            rows.append([configs, found["failed"], *[""] * 5])
            continue
        height, width = found["image_size"]
        rows.append(
            [
                configs,
                f"{width} x {height}",
                f"{found['parameters'] / 1e6:.1f} M",
                f"{found['nodes']:,}",
                f"{found['megabytes']:.0f} MB",
                f"{found['seconds']:.0f} s",
                f"{found['peak_mib'] / 1024:.1f} GiB",
            ]
        )
    return markdown_table(rows, header)


def latency(results: Path) -> str:
    """Returns the table of latencies: median and 95th percentile in ms by model, contestant and threads."""
    rows = read("latency", results)["rows"]
    threads = sorted({row["threads"] for row in rows})
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for row in rows:
        key = (row["model"], row["run by"])
        text = row["failed"] if "failed" in row else f"{row['median_ms']:.1f} ({row['p95_ms']:.1f})"
        cells.setdefault(key, {})[row["threads"]] = text
    header = ["model", "run by", *(f"{count} thread{'s' * (count > 1)}" for count in threads)]
    return markdown_table(
        [[*key, *(found.get(count, "") for count in threads)] for key, found in cells.items()], header
    )


TABLES: dict[str, Callable[[Path], str]] = {
    "verification": verification,
    "precision": precision,
    "groups": groups,
    "sizes": sizes,
    "latency": latency,
}


def table(name: str, results: Path = RESULTS) -> str:
    """Returns one of ``TABLES``, or that a result file is not there yet."""
    try:
        return TABLES[name](results)
    except FileNotFoundError as error:
        return f"Not measured yet: `{Path(error.filename).name}`."


def _scores(row: dict[str, Any]) -> list[str]:
    """Returns metrics, and where there are, the changes of the certain objects."""
    if "lost" not in row:
        return [_metrics(row["metrics"]), "", "", ""]
    changes = [f"{row['lost']:.2%}", f"{row['shift'] * 100:.1f} cm", f"{row['score']:.3f}"]
    return [_metrics(row["metrics"]), *changes]


def _metrics(metrics: dict[str, float]) -> str:
    shown = ((name.removesuffix("_3D_moderate_R40"), value) for name, value in metrics.items())
    return ", ".join(f"{name} {value:.4f}" if value <= 1 else f"{name} {value:.2f}" for name, value in shown)


if __name__ == "__main__":
    PLACES.write(table)
