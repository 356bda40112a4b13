"""Inputs of the commands of a page: data sets of a few frames, weights, and files that the demos write."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nuscenes.utils.splits import create_splits_scenes

import bevkd2.modeling  # noqa: F401  (registers the models)
from bevkd2.checkpoint import import_bevformer, import_fcos3d, import_smoke, save_file
from bevkd2.config import CfgNode, load_config
from bevkd2.d2 import build_model
from bevkd2.data.synthetic import KittiWorldConfig, WorldConfig, generate
from bevkd2.distill import student_config
from bevkd2.kitti.files import read_frame_list
from bevkd2.kitti.labels import read_labels, write_detections
from tests.docs.pages import ROOT

DEMO_SCENES, DEMO_FRAMES = (240, 24), (480, 120)
DEMO_MODELS = ("teacher", "student", "distilled")
FRAMES_PER_SPLIT = 2


def fewer(number: int) -> int:
    """Fewer scenes or frames, in such a way that different worlds of a page stay different."""
    return math.ceil(number / 100)


def nuscenes(folder: Path, name: str, cfg: CfgNode) -> Path:
    """A synthetic world that has the version and the splits of a config, one scene each."""
    version, official = cfg.DATASETS.VERSION, create_splits_scenes()
    named = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    splits = {split: official.get(split, [split])[:1] for split in named}
    root = folder / "-".join([name, version, *splits])
    world = WorldConfig(
        version=version,
        num_train_scenes=len(splits),
        num_val_scenes=0,
        frames_per_scene=2,
        image_size=(160, 90),
    )
    generate(world, root, workers=1, progress=False)
    table = root / version / "scene.json"
    records = json.loads(table.read_text())
    for record, names in zip(records, splits.values(), strict=True):
        record["name"] = names[0]
    table.write_text(json.dumps(records))
    (root / version / "splits.json").write_text(json.dumps(splits))
    return root


def kitti(folder: Path, name: str, splits: Sequence[str]) -> Path:
    """A synthetic world in KITTI layout with these splits; the first has objects of all classes."""
    splits = list(dict.fromkeys(splits))
    root = folder / "-".join([name, *splits])
    world = KittiWorldConfig(
        num_train_frames=FRAMES_PER_SPLIT * len(splits), num_val_frames=0, min_objects=8, max_objects=10
    )
    generate(world, root, workers=1, progress=False)
    for i, split in enumerate(splits):
        frames = range(FRAMES_PER_SPLIT * i, FRAMES_PER_SPLIT * (i + 1))
        (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{frame:06d}\n" for frame in frames))
    return root


def kitti_detections(root: Path, split: str, folder: Path) -> Path:
    """Detection files of a split in ``folder``/data: its own labels, the surer the nearer."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for frame in read_frame_list(root / "ImageSets" / f"{split}.txt"):
        labels = read_labels(root / "training" / "label_2" / f"{frame}.txt")
        found = labels[labels.types != "DontCare"]
        found = dataclasses.replace(found, scores=np.exp(-found.location[:, 2] / 30))
        write_detections(folder / "data" / f"{frame}.txt", found)
    return folder


def untrained(cfg: CfgNode) -> dict[str, torch.Tensor]:
    """The state of the model of a config, on the CPU."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.WEIGHTS = "cpu", ""
    return build_model(cfg).state_dict()


def save_weights(cfg: CfgNode, path: Path) -> None:
    """A checkpoint of the plain model of a config, untrained."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"model": untrained(cfg)}, path)


def save_published(architecture: str, cfg: CfgNode, path: Path) -> None:
    """A file in the layout that the weights of an architecture are published in, untrained."""
    state = untrained(cfg)
    if architecture == "bevformer":
        published = import_bevformer.to_published(state, torch.ones(10))
    else:
        importer = import_smoke if architecture == "smoke" else import_fcos3d
        published = importer.to_published(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"meta": {"epoch": 1}, "state_dict": published}, path)


def demo(folder: Path) -> None:
    """What ``make demo`` leaves behind (tests/cli/test_demo.py runs it)."""
    if (folder / "output" / "demo").is_dir():
        return
    train, val = map(fewer, DEMO_SCENES)
    world = WorldConfig.preset("easy", num_train_scenes=train, num_val_scenes=val, frames_per_scene=2)
    generate(world, folder / "data" / "demo", workers=1, progress=False)
    _demo_weights("demo", folder / "output" / "demo")


def demo_mono(folder: Path) -> None:
    """What ``make demo-mono`` leaves behind (tests/cli/test_demo.py runs it)."""
    output, data = folder / "output" / "demo-mono", folder / "data" / "demo_mono"
    if output.is_dir():
        return
    train, val = map(fewer, DEMO_FRAMES)
    world = KittiWorldConfig.preset("easy", num_train_frames=train, num_val_frames=val)
    generate(world, data, workers=1, progress=False)
    _demo_weights("demo_mono", output)
    for name in DEMO_MODELS:
        kitti_detections(data, "val", output / name / "inference")


def _demo_weights(configs: str, output: Path) -> None:
    student = load_config(ROOT / "configs" / configs / "student.yaml")
    distilled = student_config(load_config(ROOT / "configs" / configs / "distill.yaml"))
    save_weights(student, output / "student" / "model_final.pth")
    save_weights(distilled, output / "distilled" / "model_final.pth")
