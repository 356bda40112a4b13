"""The recorded whole detectors."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_recorded_pgd_detectors(monkeypatch: pytest.MonkeyPatch, shared_dir: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "tools"))
    from golden import full_nets

    rows = full_nets.compare(shared_dir / "golden" / "mono")
    assert [row.quantity for row in rows if row.failed] == []
    assert len(rows) == 2 * 7
