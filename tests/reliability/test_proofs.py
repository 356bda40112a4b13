"""Small versions of the proofs; ``make reliability`` runs them whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import PROGRAM_SECONDS
from tests.reliability.families import ROOT
from tests.reliability.report import Row, count_tests

# One program, whose trainings are forked from it: what takes long is the import.
PROGRAM = """
import signal, sys
from pathlib import Path
import torch
from tests.reliability import kill, signals
from tests.reliability.report import write

torch.set_num_threads(1)
place, results = Path(sys.argv[1]), Path(sys.argv[2])
rows = kill.prove(place, kills=2, names=("PGD",))
rows += signals.prove(place, ("PGD",), (signal.SIGTERM,), processes=(2,), phases=("step",))
write("small", "", rows, results)
"""


@pytest.mark.slow
def test_kills_and_signals(tmp_path: Path) -> None:
    """Two kills of one process, and a SIGTERM to one and to all of two processes."""
    (tmp_path / "place").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "place"), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "small.json").read_text())["rows"]
    assert [(row["cases"], row["failures"]) for row in rows] == [(2, []), (2, [])]


JUNIT = """<testsuites><testsuite>
<testcase name="good"/><testcase name="absent"><skipped/></testcase>
<testcase name="bad"><failure/></testcase><testcase name="broken"><error/></testcase>
</testsuite></testsuites>"""


def test_pytests_tests_are_counted(tmp_path: Path) -> None:
    """Skipped ones are no cases; a process that a report has ended leaves no file, and is one that failed."""
    row = Row("sanitize")
    count_tests(row, "best", 66, tmp_path / "absent.xml")
    assert (row.cases, row.survived) == (1, 0) and "66" in row.failures[0]
    results = tmp_path / "results.xml"
    results.write_text(JUNIT)
    count_tests(row, "default", 1, results)
    assert (row.cases, row.survived) == (4, 1)
    assert row.failures[1:] == ["default: bad", "default: broken"]
    results.write_text("<testsuite><testcase name='good'/></testsuite>")
    count_tests(row, "default", 1, results)  # every test passed, and the process failed behind them
    assert (row.cases, row.survived) == (6, 2) and "exit status 1" in row.failures[-1]
