"""Datasets, transforms and loaders.

Names are imported when they are asked for: KITTI's files can be read without torch (see bevkd2.evaluation).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bevkd2.data.kitti import KittiIndex, load_kitti, register_kitti
    from bevkd2.data.loader import build_test_loader, build_train_loader, dataset_name
    from bevkd2.data.mapper import NuScenesMapper
    from bevkd2.data.mono_index import MonoIndex, MonoRecord
    from bevkd2.data.mono_mapper import MonoMapper
    from bevkd2.data.nuscenes import load_nuscenes, register_nuscenes
    from bevkd2.data.nuscenes_index import NuScenesIndex
    from bevkd2.data.nuscenes_layout import CLASS_NAMES

_MODULE_OF = {
    "KittiIndex": "kitti",
    "load_kitti": "kitti",
    "register_kitti": "kitti",
    "build_test_loader": "loader",
    "build_train_loader": "loader",
    "dataset_name": "loader",
    "NuScenesMapper": "mapper",
    "MonoIndex": "mono_index",
    "MonoRecord": "mono_index",
    "MonoMapper": "mono_mapper",
    "load_nuscenes": "nuscenes",
    "register_nuscenes": "nuscenes",
    "NuScenesIndex": "nuscenes_index",
    "CLASS_NAMES": "nuscenes_layout",
}

__all__ = [
    "CLASS_NAMES",
    "KittiIndex",
    "MonoIndex",
    "MonoMapper",
    "MonoRecord",
    "NuScenesIndex",
    "NuScenesMapper",
    "build_test_loader",
    "build_train_loader",
    "dataset_name",
    "load_kitti",
    "load_nuscenes",
    "register_kitti",
    "register_nuscenes",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
