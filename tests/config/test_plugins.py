"""What downstream packages add to the config."""

from __future__ import annotations

from pathlib import Path

import pytest

from bevkd2.config import get_cfg, import_plugin
from bevkd2.config import plugins as plugins_module


def test_plugin_adds_keys_to_every_later_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config_test_plugin.py").write_text(
        "from bevkd2.config.plugins import add_config_extension\n"
        "from bevkd2.config import CfgNode\n"
        "def extend(cfg):\n"
        "    cfg.MODEL.MINE = CfgNode({'SIZE': 3})\n"
        "add_config_extension(extend)\n"
        "add_config_extension(extend)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins_module, "_EXTENSIONS", list(plugins_module._EXTENSIONS))
    before = len(plugins_module._EXTENSIONS)
    assert "MINE" not in get_cfg().MODEL
    import_plugin("config_test_plugin")
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.MINE.SIZE", "5"])
    assert cfg.MODEL.MINE.SIZE == 5 and len(plugins_module._EXTENSIONS) == before + 1


def test_plugin_that_is_not_there() -> None:
    with pytest.raises(
        ImportError, match=r"--import no_such_package: .*importable \(installed, or on PYTHONPATH\)"
    ):
        import_plugin("no_such_package")
