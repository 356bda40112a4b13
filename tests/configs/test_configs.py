"""Every shipped config loads and builds, is short to follow, and writes to a place of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bevkd2.config import CfgNode, get_cfg, load_config
from tests.configs.shipped import ALL, DISTILLATIONS, MONOCULAR, MULTI_VIEW, SHIPPED, built, name_of

MAX_DEPTH = 3


def bases_of(path: Path) -> list[Path]:
    """Returns the files that ``_BASE_`` of a YAML names."""
    named = yaml.safe_load(path.read_text()).get("_BASE_", [])
    return [path.parent / name for name in ([named] if isinstance(named, str) else named)]


def depth_of(path: Path) -> int:
    """Returns the number of steps from a YAML to the farthest file that it inherits from."""
    return max((1 + depth_of(base) for base in bases_of(path)), default=0)


def own_keys(tree: dict[str, Any], above: str = "") -> Iterator[str]:
    """Yields the dotted keys that a YAML gives a value to."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from own_keys(value, f"{above}{key}.")
        elif key != "_BASE_":
            yield above + key


def value_of(cfg: CfgNode, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node


def test_there_are_configs() -> None:
    assert len(MULTI_VIEW) >= 15 and len(MONOCULAR) >= 30


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_every_config_builds(path: Path) -> None:
    assert sum(p.numel() for p in built(path).parameters()) > 0


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_chain_of_bases_is_short(path: Path) -> None:
    assert depth_of(path) <= (0 if "_base_" in path.parts else MAX_DEPTH)


def test_every_base_is_used() -> None:
    used = {base.resolve() for path in ALL for base in bases_of(path)}
    bases = {path.resolve() for path in ALL if "_base_" in path.parts}
    # those of methods are for the command line and for configs of one's own
    assert {path for path in bases if path.parent.name != "methods"} <= used


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_no_key_repeats_the_default_or_a_base(path: Path) -> None:
    """A value that repeats one of the bases makes it hard to see what a config changes."""
    before = get_cfg()
    for base in bases_of(path):
        before.merge_from_file(str(base))
    after = load_config(path)
    keys = own_keys(yaml.safe_load(path.read_text()))
    assert [key for key in keys if value_of(before, key) == value_of(after, key)] == []


@pytest.mark.parametrize("path", DISTILLATIONS, ids=name_of)
def test_weights_of_a_teacher_are_named_only_where_they_are_shipped(path: Path) -> None:
    weights = load_config(path).DISTILL.TEACHER.WEIGHTS
    assert weights.startswith("assets/") if path.parent.name.startswith("demo") else weights == ""


def test_output_folders_differ() -> None:
    """Two runs that overwrite each other's checkpoints are a loss of days."""
    named = [load_config(p).OUTPUT_DIR for p in SHIPPED]
    named = [folder for folder in named if folder != "output"]
    assert len(set(named)) == len(named)
