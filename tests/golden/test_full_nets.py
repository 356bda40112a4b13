"""The recorded whole detectors."""

from __future__ import annotations

from pathlib import Path

from tests.golden import full_nets


def test_recorded_pgd_detectors(shared_dir: Path) -> None:
    rows = full_nets.compare(shared_dir / "golden" / "mono")
    assert [row.quantity for row in rows if row.failed] == []
    assert len(rows) == 2 * 7
