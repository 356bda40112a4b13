"""Rows of the table in docs/reliability.md, and the files that they are kept in."""

from __future__ import annotations

import dataclasses
import json
import os
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.machine import machine
from bevkd2.experiments.run import source_commit
from tests.reliability.families import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "reliability"
COMMIT = source_commit()  # when the program starts: the tree may change while a proof runs


@dataclasses.dataclass
class Row:
    """A proof: what is tried, how often, and how often it held."""

    test: str
    cases: int = 0
    survived: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)

    def check(self, case: str, problems: list[str]) -> None:
        """Counts a case; one without problems survived. Each is printed."""
        self.cases += 1
        self.survived += not problems
        shown = "; ".join(problems[:5]) + (f"; {len(problems) - 5} more" if len(problems) > 5 else "")
        if problems:
            self.failures.append(f"{case}: {shown}")
        print(f"{time.strftime('%H:%M:%S')} {self.test}: {case}: {shown or 'ok'}", flush=True)


def count_tests(row: Row, what: str, status: int, results: Path) -> None:
    """Adds the tests that pytest ran to a row; each is a case, those that were skipped are none.

    Args:
        row: of the proof.
        what: the run, in the names of the failures.
        status: exit status of pytest.
        results: the JUnit file that it was to write; a process that ended early leaves none.
    """
    if not results.is_file():
        row.check(what, [f"exit status {status} before the last test; the report is above"])
        return
    tests = [test for test in ElementTree.parse(results).iter("testcase") if test.find("skipped") is None]
    failed = [test.get("name", "") for test in tests if {"failure", "error"} & {child.tag for child in test}]
    row.cases += len(tests)
    row.survived += len(tests) - len(failed)
    row.failures += [f"{what}: {name}" for name in failed]
    if status and not failed:
        row.check(what, [f"exit status {status}"])


def write(name: str, command: str, rows: list[Row], folder: Path = RESULTS) -> None:
    """Writes the file of one script: its rows, and when, where and on which commit it was run."""
    folder.mkdir(parents=True, exist_ok=True)
    described = machine()
    content = {
        "command": command,
        "commit": COMMIT,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "torch": described["torch"],
        "machine": f"{described['processor']}, {len(os.sched_getaffinity(0))} cores",
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
