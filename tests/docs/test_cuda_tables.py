"""The tables of CUDA kernels in docs/benchmarks.md are those of the committed record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from make_cuda_tables import PLACES, RESULT, TABLES, body, each, kernels


@pytest.fixture
def content() -> dict[str, Any]:
    return json.loads(RESULT.read_text())


def test_page_is_current() -> None:
    (page,) = PLACES.pages()
    text = page.read_text()
    assert set(PLACES.names(text)) == set(TABLES)
    assert text == PLACES.filled(text, body), "run make tables"


def test_another_number_is_another_page(tmp_path: Path, content: dict[str, Any]) -> None:
    (page,) = PLACES.pages()
    text = page.read_text()
    for row in content["kernels"]:
        row["sm"]["90"]["registers"] += 1
    content["paper"][0]["l1_bytes_per_point"] += 1
    (tmp_path / "record.json").write_text(json.dumps(content))
    current = PLACES.filled(text, lambda name: body(name, tmp_path / "record.json"))
    changed = [line for old, line in zip(text.splitlines(), current.splitlines(), strict=True) if old != line]
    assert len(changed) > 10


def test_the_table_of_kernels_has_a_row_for_every_kernel_of_every_file(content: dict[str, Any]) -> None:
    lines = kernels(content).splitlines()[2:]
    shown = {tuple(cell.strip(" `").partition("<")[0] for cell in line.split("|")[1:3]) for line in lines}
    recorded = {
        (Path(row["source"]).stem.replace("_cuda", ""), row["kernel"].partition("<")[0])
        for row in content["kernels"]
    }
    assert shown == recorded


def test_a_kernel_that_is_the_same_everywhere_has_one_number() -> None:
    row = {"sm": {"80": {"registers": 40, "blocks": 5}, "90": {"registers": 40, "blocks": 6}}}
    assert each(row, "registers") == "40"
    assert each(row, "blocks") == "5, 6"
