"""The rows of metrics.json, to be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TIMES = frozenset({"time", "data_time", "rank_data_time", "eta_seconds", "max_mem_mb"})
"""Scalars that depend on the clock or the machine."""


def rows(output: Path) -> list[dict[str, Any]]:
    """All rows by iteration, without what the clock decides; a line that is not JSON is an error."""
    path = output / "metrics.json"
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
    return sorted((row for row in found if len(row) > 1), key=lambda row: int(row["iteration"]))
