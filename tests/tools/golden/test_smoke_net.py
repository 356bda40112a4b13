"""The recorded maps of the whole SMOKE with DLA-34."""

from __future__ import annotations

from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[3] / "tools"


def test_recorded_net(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    from golden import smoke_net

    rows = smoke_net.compare(shared_dir / "golden" / "mono")
    assert [row.quantity for row in rows if row.failed] == []
    assert len(rows) == 6
