"""The CPU kernels' tests under AddressSanitizer, UBSan and ThreadSanitizer (csrc/sanitize.py)."""

from __future__ import annotations

import runpy
from pathlib import Path

from tests.reliability.families import ROOT
from tests.reliability.report import Row, count_tests

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
