"""The table of docs/reliability.md is that of the committed results."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

from tests.docs.pages import ROOT
from tests.reliability.__main__ import PROOFS
from tests.reliability.report import RESULTS, Row, write

SCRIPT = runpy.run_path(str(ROOT / "docs" / "make_reliability_table.py"))


def test_page_is_current() -> None:
    (page,) = SCRIPT["PLACES"].pages()
    text = page.read_text()
    assert text == SCRIPT["PLACES"].filled(text, lambda name: SCRIPT["body"]()), "run make tables"


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


def test_the_oldest_and_the_newest_result_are_told(tmp_path: Path) -> None:
    for name, date, commit in (("kill", "2026-11-30", "0123456789+"), ("seeds", "2026-12-01", None)):
        write(name, "", [], tmp_path)
        content = json.loads((tmp_path / f"{name}.json").read_text())
        content |= {"date": date, "commit": commit, "torch": "2.14", "machine": "a processor"}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "fuzz.json").write_text('{"command": "", "rows": []}')
    assert SCRIPT["origin"](tmp_path).replace("\n", " ") == (
        "Oldest result: `kill` of 2026-11-30, commit 0123456+, torch 2.14, a processor. "
        "Newest result: `seeds` of 2026-12-01, commit unknown, torch 2.14, a processor. "
        "From before dates and commits were recorded: `fuzz`."
    )
