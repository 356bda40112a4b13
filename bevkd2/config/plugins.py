"""What is imported before a config is read, so that its keys and registered names are there."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from importlib.metadata import entry_points

from fvcore.common.config import CfgNode

# The package's own distillation methods come in by the same way as a downstream package's: each registers a
# function that adds its keys. Named, not imported, since their package is above this one.
_BUILT_IN = ("bevkd2.distill.methods",)
ENTRY_POINT_GROUP = "bevkd2.plugins"

_EXTENSIONS: list[Callable[[CfgNode], None]] = []


def add_config_extension(extend: Callable[[CfgNode], None]) -> None:
    """Registers a function that adds keys to every config that ``get_cfg`` returns from now on."""
    if extend not in _EXTENSIONS:
        _EXTENSIONS.append(extend)


def extend_config(cfg: CfgNode) -> None:
    """Imports the built-in and installed plugins once, and lets every extension add its keys to ``cfg``."""
    _load_installed_plugins()
    for extend in _EXTENSIONS:
        extend(cfg)


def import_plugin(package: str) -> None:
    """Imports a downstream package (``--import PACKAGE``), which registers what it brings.

    Args:
        package: an importable module name.

    Raises:
        ImportError: it cannot be imported; the message names it.
    """
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"--import {package}: {error}; the package must be importable (installed, or on PYTHONPATH)"
        ) from error


@functools.cache
def _load_installed_plugins() -> None:
    for module in _BUILT_IN:
        importlib.import_module(module)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        logging.getLogger(__name__).info("plugin %s: importing %s", point.name, point.value)
        point.load()
