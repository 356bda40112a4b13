"""Datasets, transforms and loaders."""

from bevkd2.data.loader import build_test_loader, build_train_loader, dataset_name
from bevkd2.data.mapper import NuScenesMapper
from bevkd2.data.nuscenes import load_nuscenes, register_nuscenes
from bevkd2.data.nuscenes_index import NuScenesIndex
from bevkd2.data.nuscenes_layout import CLASS_NAMES

__all__ = [
    "CLASS_NAMES",
    "NuScenesIndex",
    "NuScenesMapper",
    "build_test_loader",
    "build_train_loader",
    "dataset_name",
    "load_nuscenes",
    "register_nuscenes",
]
