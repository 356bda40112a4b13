"""The first tenth of the cases of every kind of file; ``make fuzz`` runs all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.runner import run
from tests.fuzz.targets import TARGETS, Target


def test_there_are_2000_cases() -> None:
    assert sum(target.cases for target in TARGETS) == 2000


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_mutated_files(tmp_path: Path, target: Target) -> None:
    tally = run(target, range(target.cases // 10), tmp_path / "files")
    assert tally.findings == [] and tally.outcomes.total() == target.cases // 10
    assert tally.outcomes["refused"]
