"""The recorded numbers of the published SMOKE."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.parametrize("module", ["smoke_heads", "smoke_net"])
def test_recorded_numbers_are_met(module: str, shared_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    rows = importlib.import_module(f"golden.{module}").compare(shared_dir / "golden" / "mono")
    assert rows
    assert not [row for row in rows if row.failed]
