"""Data formats, transforms and loaders; importing this package registers the built-in formats."""

from bevkd2.data.format import (
    DATA_FORMAT_REGISTRY,
    DataFormat,
    Mapper,
    data_format,
    dataset_root,
    load_dataset,
)
from bevkd2.data.kitti import KittiFormat, KittiIndex, load_kitti
from bevkd2.data.loader import build_test_loader, build_train_loader
from bevkd2.data.mono.format import MonoFormat
from bevkd2.data.mono.index import MonoIndex, MonoRecord
from bevkd2.data.mono.mapper import MonoMapper
from bevkd2.data.nuscenes.dataset import load_nuscenes
from bevkd2.data.nuscenes.format import NuScenesFormat
from bevkd2.data.nuscenes.index import NuScenesIndex
from bevkd2.data.nuscenes.mapper import NuScenesMapper
from bevkd2.data.nuscenes_mono import NuScenesMonoFormat

__all__ = [
    "DATA_FORMAT_REGISTRY",
    "DataFormat",
    "KittiFormat",
    "KittiIndex",
    "Mapper",
    "MonoFormat",
    "MonoIndex",
    "MonoMapper",
    "MonoRecord",
    "NuScenesFormat",
    "NuScenesIndex",
    "NuScenesMapper",
    "NuScenesMonoFormat",
    "build_test_loader",
    "build_train_loader",
    "data_format",
    "dataset_root",
    "load_dataset",
    "load_kitti",
    "load_nuscenes",
]
