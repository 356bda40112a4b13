"""What downstream packages add to the config."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
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
    assert "MINE" not in get_cfg().MODEL  # and the built-in extensions are in the list that is put back
    monkeypatch.setattr(plugins_module, "_EXTENSIONS", list(plugins_module._EXTENSIONS))
    before = len(plugins_module._EXTENSIONS)
    import_plugin("config_test_plugin")
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.MINE.SIZE", "5"])
    assert cfg.MODEL.MINE.SIZE == 5 and len(plugins_module._EXTENSIONS) == before + 1


def test_plugin_that_is_not_there() -> None:
    with pytest.raises(
        ImportError, match=r"--import no_such_package: .*importable \(installed, or on PYTHONPATH\)"
    ):
        import_plugin("no_such_package")


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The next config is the first one of its process."""
    plugins_module.load_installed_plugins.cache_clear()
    yield
    monkeypatch.undo()
    plugins_module.load_installed_plugins.cache_clear()


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_built_in_package_that_fails_to_import_is_an_error_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_built_in.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins_module, "_BUILT_IN", (*plugins_module._BUILT_IN, "broken_built_in"))
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
            get_cfg()


@pytest.mark.usefixtures("nothing_is_loaded")
def test_an_installed_plugin_that_fails_to_import_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("mine", "no_such_package.detectors", plugins_module.ENTRY_POINT_GROUP)
    monkeypatch.setattr(plugins_module, "entry_points", lambda group: [point] if group == point.group else [])
    message = (
        r"plugin 'mine', the entry point no_such_package\.detectors of the group bevkd2\.plugins: .*'no_such"
    )
    with pytest.raises(ImportError, match=message):
        get_cfg()
