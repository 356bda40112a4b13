"""Every shipped config loads and builds, and no two write to the same place."""

from __future__ import annotations

from pathlib import Path

import pytest

from bevkd2.config import load_config
from tests.configs.shipped import MONOCULAR, MULTI_VIEW, SHIPPED, built, name_of


def test_there_are_configs() -> None:
    assert len(MULTI_VIEW) >= 15 and len(MONOCULAR) >= 30


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_every_config_builds(path: Path) -> None:
    assert sum(p.numel() for p in built(path).parameters()) > 0


def test_output_folders_differ() -> None:
    """Two runs that overwrite each other's checkpoints are a loss of days."""
    named = [load_config(p).OUTPUT_DIR for p in SHIPPED]
    named = [folder for folder in named if folder != "output"]
    assert len(set(named)) == len(named)
