"""The table of docs/reliability.md is that of the committed results."""

from __future__ import annotations

import runpy
from pathlib import Path

from tests.docs.pages import ROOT
from tests.reliability.__main__ import PROOFS
from tests.reliability.report import RESULTS, Row, write

SCRIPT = runpy.run_path(str(ROOT / "docs" / "make_reliability_table.py"))


def test_page_is_current() -> None:
    (page,) = SCRIPT["PLACES"].pages()
    text = page.read_text()
    assert text == SCRIPT["PLACES"].filled(text, lambda name: SCRIPT["table"]()), "run make tables"


def test_every_proof_has_a_committed_result() -> None:
    assert sorted(path.stem for path in RESULTS.glob("*.json")) == sorted(PROOFS)


def test_rows_are_written_and_tabulated(tmp_path: Path) -> None:
    row = Row("kill")
    row.check("first", [])
    row.check("second", ["weights differ"])
    write("kill", "python -m tests.reliability kill", [row], tmp_path)
    lines = SCRIPT["table"](tmp_path).splitlines()
    assert [cell.strip() for cell in lines[-1].strip("|").split("|")] == [
        *("kill", "2", "1", "`python -m tests.reliability kill`")
    ]
