"""The recorded maps of the whole SMOKE with DLA-34."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import smoke_net


def test_recorded_net(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = smoke_net.compare(shared_dir / "golden" / "mono")
    assert [row.quantity for row in rows if row.failed] == []
    assert len(rows) == 6
