"""Datasets, transforms and loaders."""

from bevkd2.data.kitti.dataset import KittiIndex, load_kitti, register_kitti
from bevkd2.data.loader import build_test_loader, build_train_loader, dataset_name
from bevkd2.data.mono.index import MonoIndex, MonoRecord
from bevkd2.data.mono.mapper import MonoMapper
from bevkd2.data.nuscenes.dataset import load_nuscenes, register_nuscenes
from bevkd2.data.nuscenes.index import NuScenesIndex
from bevkd2.data.nuscenes.mapper import NuScenesMapper

__all__ = [
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
