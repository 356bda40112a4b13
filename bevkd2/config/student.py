"""The student's architecture, kept where a distillation's architecture takes its place in a merge.

A student's YAML file says ``MODEL.META_ARCHITECTURE: BEVFormer``. A distillation's file that inherits it says
``MODEL.META_ARCHITECTURE: Distiller``, and the merge moves the replaced name to
``DISTILL.STUDENT.META_ARCHITECTURE``. So the student's name is written once.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def replaced_student(new: Mapping[str, Any], old: Mapping[str, Any]) -> str:
    """Returns the student's architecture that a merge of ``new`` into ``old`` would replace; "": none.

    Args:
        new: a config, or the content of a YAML file.
        old: what it is merged into.
    """
    name, replaced = _architecture(new), _architecture(old)
    return replaced if _is_distiller(name) and not _is_distiller(replaced) else ""


def _architecture(tree: Mapping[str, Any]) -> str:
    model = tree.get("MODEL")
    name = model.get("META_ARCHITECTURE") if isinstance(model, Mapping) else None
    return name if isinstance(name, str) else ""


def _is_distiller(name: str) -> bool:
    # Named, not imported, as in plugins.py: only bevkd2.distill, a package above this one, knows.
    return bool(name and importlib.import_module("bevkd2.distill.config").is_distiller(name))
