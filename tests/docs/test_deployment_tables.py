"""The tables of docs/deployment.md are those of the committed results."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

SCRIPT = runpy.run_path(str(ROOT / "docs" / "make_deployment_tables.py"))


def test_page_is_current() -> None:
    text = SCRIPT["PAGE"].read_text()
    assert {name for _, name, _ in SCRIPT["PLACE"].findall(text)} == set(SCRIPT["TABLES"])
    assert text == SCRIPT["filled"](text), "run python docs/make_deployment_tables.py"


@pytest.mark.parametrize("name", SCRIPT["TABLES"])
def test_a_place_without_results_says_so(name: str, tmp_path: Path) -> None:
    assert SCRIPT["table"](name, tmp_path).startswith("Not measured yet: `")


@pytest.mark.parametrize("name", SCRIPT["TABLES"])
def test_a_place_gets_its_table(name: str) -> None:
    page = f"a\n<!-- deployment {name} -->\nold\n<!-- end of deployment {name} -->\nb\n"
    current = SCRIPT["filled"](page)
    assert SCRIPT["table"](name) in current and "old" not in current
    assert current.startswith("a\n") and current.endswith(f"<!-- end of deployment {name} -->\nb\n")
