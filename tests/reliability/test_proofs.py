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
