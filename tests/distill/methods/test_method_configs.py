"""The files of configs/_base_/methods."""

from __future__ import annotations

from pathlib import Path

import pytest

import bevkd2.distill  # noqa: F401  (registers)
from bevkd2.config import get_cfg
from bevkd2.distill import DISTILL_REGISTRY

FILES = sorted((Path(__file__).parents[3] / "configs" / "_base_" / "methods").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_selects_its_method_with_legal_keys(path: Path) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    (method,) = cfg.DISTILL.METHODS
    assert DISTILL_REGISTRY.get(method).node.lower() == path.stem
    assert cfg.DISTILL.FACTOR == 1.0
