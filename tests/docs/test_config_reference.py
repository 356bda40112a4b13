"""docs/config_reference.md, and the comments beside the keys that it is made of."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.docs.pages import KEYS, ROOT

SOURCE = """
A = 1  # beside
# above it
# in two lines
B = 2
C = 3
D = [
    4,  # within
]
# not this
E = 5  # beside, not this
"""
SCRIPT = runpy.run_path(str(ROOT / "docs" / "make_config_reference.py"))


def test_page_is_current() -> None:
    assert SCRIPT["PAGE"].read_text() == SCRIPT["page"](), "run make tables"


def test_every_key_has_a_comment() -> None:
    keys = SCRIPT["config_keys"]()
    assert {key.name for key in keys} <= set(KEYS) and len(keys) > 200
    assert [key.name for key in keys if not key.comment] == []


@pytest.mark.parametrize(
    ("line", "comment"),
    [(2, "beside"), (5, "above it in two lines"), (6, ""), (8, "within"), (11, "beside, not this")],
)
def test_comment_of_a_statement(line: int, comment: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.py"
    path.write_text(SOURCE)
    assert SCRIPT["comment_at"](path, line) == comment
