"""The tables of docs/deployment.md are those of the committed results."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

SCRIPT = runpy.run_path(str(ROOT / "docs" / "make_deployment_tables.py"))


def test_page_is_current() -> None:
    (page,) = SCRIPT["PLACES"].pages()
    text = page.read_text()
    assert set(SCRIPT["PLACES"].names(text)) == set(SCRIPT["TABLES"])
    assert text == SCRIPT["PLACES"].filled(text, SCRIPT["table"]), "run make tables"


@pytest.mark.parametrize("name", SCRIPT["TABLES"])
def test_a_place_without_results_says_so(name: str, tmp_path: Path) -> None:
    assert SCRIPT["table"](name, tmp_path).startswith("Not measured yet: `")
