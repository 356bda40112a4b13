"""The CPU kernels' tests under AddressSanitizer, UBSan and ThreadSanitizer (csrc/sanitize.py)."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tests.reliability.families import ROOT
from tests.reliability.report import Row

NAMES = {
    "address": "AddressSanitizer and UBSan over the tests of ops and KITTI's score, every instruction set",
    "thread": "ThreadSanitizer over those that compute in several threads, every instruction set",
}


def prove(place: Path, kinds: tuple[str, ...] = tuple(NAMES)) -> list[Row]:
    """Builds each kind and runs its tests; a case is a test that ran, with one instruction set."""
    sanitize = runpy.run_path(str(ROOT / "csrc" / "sanitize.py"))
    rows = []
    for kind in kinds:
        row = Row(NAMES[kind])
        library = sanitize["build_sanitized"](kind)
        for capability in sanitize["CAPABILITIES"]:
            results = place / f"{kind}_{capability}.xml"
            status = sanitize["run_tests"](kind, library, capability, results)
            count_tests(row, capability, status, results)
        rows.append(row)
    return rows


def count_tests(row: Row, capability: str, status: int, results: Path) -> None:
    """Adds the tests of a JUnit file to a row; a process that a report ended leaves no such file."""
    if not results.is_file():
        row.check(capability, [f"exit status {status} before the last test; the report is above"])
        return
    tests = [test for test in ElementTree.parse(results).iter("testcase") if test.find("skipped") is None]
    failed = [test.get("name", "") for test in tests if {"failure", "error"} & {child.tag for child in test}]
    row.cases += len(tests)
    row.survived += len(tests) - len(failed)
    row.failures += [f"{capability}: {name}" for name in failed]
    if status and not failed:
        row.check(capability, [f"exit status {status}"])
