"""The first tenth of the cases of every kind of file; ``make fuzz`` runs all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.runner import run
from tests.fuzz.targets import TARGETS, Result, Target
from tests.reliability.fuzz import GROUPS


def test_there_are_2340_cases_all_in_a_row_of_the_table() -> None:
    assert sum(target.cases for target in TARGETS) == 2340
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(t.name for t in TARGETS)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("labels", lambda content: content["train"]["labels"][0]["alpha"].__iadd__(1)),
        ("results_nusc.json", lambda content: content["drawn"].popitem()),
        ("weights.safetensors", lambda content: content["0.weight"].mul_(2)),
        ("teacher cache", lambda content: content[0].pop("logits")),
    ],
)
def test_values_that_are_not_those_of_the_file_are_found(
    tmp_path: Path, name: str, spoil: Callable[[Any], object]
) -> None:
    target = next(target for target in TARGETS if target.name == name)

    def read(folder: Path) -> Result:
        result = target.read(folder)
        spoil(result["content"])
        return result

    wrong = dataclasses.replace(target, read=read)
    with pytest.raises(AssertionError, match="the reference differs without a mutation"):
        run(wrong, [0], tmp_path / "files")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_mutated_files(tmp_path: Path, target: Target) -> None:
    tally = run(target, range(target.cases // 10), tmp_path / "files")
    assert tally.findings == [] and tally.outcomes.total() == target.cases // 10
    assert tally.outcomes["refused"]
