"""Datasets, transforms and loaders."""

from bevkd2.data.kitti import KittiIndex, load_kitti, register_kitti
from bevkd2.data.loader import build_test_loader, build_train_loader, dataset_name
from bevkd2.data.mapper import NuScenesMapper
from bevkd2.data.mono_index import MonoIndex, MonoRecord
from bevkd2.data.mono_mapper import MonoMapper
from bevkd2.data.nuscenes import load_nuscenes, register_nuscenes
from bevkd2.data.nuscenes_index import NuScenesIndex
from bevkd2.data.nuscenes_layout import CLASS_NAMES

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
