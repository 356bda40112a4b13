"""The monocular demo as a command of its own; :class:`bevkd2.cli.demo.MonocularDemo` is the code."""

from __future__ import annotations

from collections.abc import Sequence

from bevkd2.cli.demo import MonocularDemo


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the monocular demo from end to end; returns the exit status."""
    return MonocularDemo().run(argv)
