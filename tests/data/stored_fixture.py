"""Detections on disk, as evaluations store them: the annotations with some of them changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bevkd2.config import get_cfg
from bevkd2.data import data_format, load_dataset
from bevkd2.data.stored import StoredFrames
from bevkd2.evaluation.nuscenes_results import SampleDetections, write_results
from bevkd2.kitti.labels import read_labels, write_detections
from bevkd2.structures import Boxes3D
from tests.data.kitti_fixture import VAL
from tests.data.nuscenes_fixture import VERSION


def kitti_config(root: Path) -> Any:
    cfg = get_cfg()
    cfg.DATASETS.FORMAT, cfg.DATASETS.ROOT, cfg.DATASETS.TEST = "kitti", str(root), ("val",)
    return cfg


def store_kitti(root: Path, folder: Path, *, shift: float = 0.0, keep: int | None = None) -> Path:
    """Writes the labels of the val split as detections, moved along z, or only some of each image."""
    (folder / "inference" / "data").mkdir(parents=True)
    for name in VAL:
        truth = read_labels(root / "training" / "label_2" / f"{name}.txt")
        truth = truth[truth.types != "DontCare"][:keep]
        moved = truth.location + np.array([0.0, 0.0, shift])
        found = dataclasses.replace(truth, location=moved, scores=np.full(len(truth), 0.9))
        write_detections(folder / "inference" / "data" / f"{name}.txt", found)
    return folder


def store_nuscenes(
    cfg: Any, frames: StoredFrames, folder: Path, *, shift: float = 0.0, keep: int | None = None
) -> Path:
    """Writes the objects of all frames as detections, moved along x of LIDAR_TOP, or only some of each."""
    index, detections = load_dataset(cfg, cfg.DATASETS.TEST[0]), {}
    index = getattr(index, "frames", index)
    for i, name in enumerate(frames.names):
        truth = frames.truth(i)
        boxes = truth.boxes.tensor[:keep].nan_to_num() + torch.tensor([shift] + [0.0] * 8)
        detections[name] = SampleDetections(
            boxes=Boxes3D(boxes),
            scores=np.full(len(boxes), 0.9),
            labels=truth.labels[:keep],
            lidar2global=index.lidar2global[i],
            ego2global=index.ego2global[i],
        )
    (folder / "inference").mkdir(parents=True)
    ranges = dict.fromkeys(frames.class_names, 99.0)
    write_results(folder / "inference" / "results_nusc.json", detections, ranges)
    return folder


def nuscenes_config(world: Any, form: str = "nuscenes", split: str = "both") -> Any:
    cfg = get_cfg()
    cfg.DATASETS.FORMAT, cfg.DATASETS.ROOT = form, str(world.root)
    cfg.DATASETS.VERSION, cfg.DATASETS.TEST = VERSION, (split,)
    return cfg


def open_frames(cfg: Any) -> StoredFrames:
    return data_format(cfg).stored_frames(cfg, cfg.DATASETS.TEST[0])
