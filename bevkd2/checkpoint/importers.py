"""The registry of published layouts that ``tools/import_weights.py`` converts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from bevkd2.checkpoint.key_rules import ImportReport
from bevkd2.d2 import Registry

Importer = Callable[[Mapping[str, Tensor]], ImportReport]

IMPORTER_REGISTRY = Registry("IMPORTER")
IMPORTER_REGISTRY.__doc__ = """Functions by architecture, as ``--arch`` names it.

Each takes a published state dict and returns an :class:`ImportReport`: the tensors by this package's names,
and an account of every key.
"""


def register_importer(*architectures: str) -> Callable[[Importer], Importer]:
    """Returns a decorator that registers a function for the names that ``--arch`` accepts."""

    def register(importer: Importer) -> Importer:
        for name in architectures:
            IMPORTER_REGISTRY._do_register(name, importer)
        return importer

    return register
