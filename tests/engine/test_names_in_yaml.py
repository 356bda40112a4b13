"""Names in a YAML file are looked up in registries; none is imported or called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bevkd2.config import CfgNode, get_cfg
from bevkd2.d2 import build_model
from bevkd2.data import data_format
from bevkd2.distill.config import more_distillations
from bevkd2.engine import build_trainer
from tests.engine.toys import TOY_OPTIONS, build_toy_loader

NAMES = ("trap", "trap.Trap", "trap:Trap", "trap.Trap()", "os.system", "__import__('trap')")


def build_toy_trainer(cfg: CfgNode) -> Any:
    return build_trainer(cfg, build_model(cfg), build_loader=build_toy_loader)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("MODEL: {{META_ARCHITECTURE: {0}}}", build_model),
        ("MODEL: {{META_ARCHITECTURE: BEVFormer, BACKBONE: {{NAME: {0}}}}}", build_model),
        ("HOOKS: [{0}]", build_toy_trainer),
        ("DATASETS: {{FORMAT: {0}}}", data_format),
        ("SOLVER: {{COMPILE: {{MODEL: true, BACKEND: {0}}}}}", build_toy_trainer),
        ("SOLVER: {{OPTIMIZER: {0}}}", build_toy_trainer),
        ("DISTILL: {{MORE_TEACHERS: [{{NAME: t, METHODS: [{0}]}}]}}", more_distillations),
    ],
)
def test_a_name_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, use: Callable[[CfgNode], Any], name: str
) -> None:
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nTrap = print\n")
    monkeypatch.syspath_prepend(tmp_path)
    quoted = f'"{name}"'
    (tmp_path / "config.yaml").write_text(text.format(quoted))
    cfg = get_cfg()
    cfg.merge_from_list([*TOY_OPTIONS, "OUTPUT_DIR", str(tmp_path / "out")])
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    with pytest.raises((KeyError, ValueError)) as error:
        use(cfg)
    assert name in str(error.value)
    assert not (tmp_path / "sprung").exists() and "trap" not in sys.modules
    import trap  # type: ignore[import-not-found]  # noqa: F401  (it is live, or this test shows nothing)

    assert (tmp_path / "sprung").exists()
    del sys.modules["trap"]
