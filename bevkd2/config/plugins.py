"""What is imported before a config is read, so that its keys and registered names are there."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from fvcore.common.config import CfgNode

# bevkd2's own detectors, distillation methods and data formats add their keys in the same way as a downstream
# package's. They are named, not imported, since they belong to packages above this one.
_BUILT_IN = ("bevkd2.modeling", "bevkd2.distill.methods", "bevkd2.data")
ENTRY_POINT_GROUP = "bevkd2.plugins"

ConfigExtension = Callable[[Any], None]
"""Adds keys to a config, which is bevkd2's or has begun as Detectron2's own."""

_EXTENSIONS: list[ConfigExtension] = []


def add_config_extension(extend: ConfigExtension) -> ConfigExtension:
    """Registers a function that adds keys to every config that ``get_cfg`` returns from now on.

    Args:
        extend: called with the config.

    Returns:
        The function, so that this is a decorator too.
    """
    if extend not in _EXTENSIONS:
        _EXTENSIONS.append(extend)
    return extend


def extend_config(cfg: CfgNode) -> None:
    """Imports the built-in and installed plugins once, and lets every extension add its keys to ``cfg``.

    Raises:
        ImportError: one of them cannot be imported.
    """
    load_installed_plugins()
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
def load_installed_plugins() -> None:
    """Imports the built-in and the installed plugins, once.

    Raises:
        ImportError: one of them cannot be imported.
    """
    for module in _BUILT_IN:
        importlib.import_module(module)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        logging.getLogger(__name__).info("plugin %s: importing %s", point.name, point.value)
        try:
            point.load()
        except ImportError as error:
            raise ImportError(
                f"plugin {point.name!r}, the entry point {point.value} of the group {ENTRY_POINT_GROUP}: "
                f"{error}; install what it needs, or uninstall the package that brings it"
            ) from error
