"""What is fuzzed: for each kind of file small valid ones, how a user's run reads them, and what is right."""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from bevkd2.cli import kitti_eval
from bevkd2.config import load_config
from bevkd2.data.image_files import read_image
from bevkd2.data.kitti import load_kitti
from bevkd2.data.mono.mapper import MonoMapper
from bevkd2.data.nuscenes.dataset import load_nuscenes
from bevkd2.data.nuscenes.index import NuScenesIndex
from bevkd2.data.nuscenes.mapper import NuScenesMapper
from bevkd2.data.nuscenes_mono import NuScenesMonoIndex
from bevkd2.data.synthetic import KittiWorldConfig, generate
from bevkd2.evaluation.nuscenes import NuScenesScorer
from bevkd2.evaluation.nuscenes_results import SampleDetections
from bevkd2.experiments.spec import read_experiment
from bevkd2.kitti.labels import TYPES, KittiObjects, read_detections, read_labels
from bevkd2.nuscenes.layout import MONO_CLASS_NAMES
from tests.data.nuscenes_fixture import VERSION, FixtureWorld, write_can_bus
from tests.fuzz import mutate, reference
from tests.fuzz.checkpoints import (
    expected_weights,
    mutate_run,
    read_weights,
    resume,
    same_safetensors,
    same_tensors,
    write_run,
    write_weights,
)
from tests.fuzz.exported import is_sealed, read_exported, write_exported
from tests.fuzz.imports import expected_import, import_published, same_published, write_published
from tests.fuzz.mutate import Mutation
from tests.fuzz.results import are_results, expected_results, read_results_file, write_results_file
from tests.fuzz.teacher_caches import expected_cache, read_cache, same_cache, write_cache
from tests.fuzz.validity import Result, same_shape, strict_json

CLASSES = ("Pedestrian", "Cyclist", "Car")
_SPLITS = ("train", "val")


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        name: of the kind.
        cases: how many of all.
        files: patterns of the files that are mutated, below the folder.
        prepare: writes valid files into a folder.
        mutate: makes a mutated content.
        read: reads the folder as a run does, and returns all that it gets of it.
        valid: whether a content is one that a user may well have meant, so that another result is right;
            it gets the original and the mutated content.
        reference: another reading of the folder, see :mod:`tests.fuzz.reference`; what it returns is what an
            accepted folder's "content" must be. None: the values of the files are not compared.
    """

    name: str
    cases: int
    files: tuple[str, ...]
    prepare: Callable[[Path], object]
    mutate: Callable[[random.Random, bytes], Mutation]
    read: Callable[[Path], Result]
    valid: Callable[[bytes, bytes], bool]
    reference: Callable[[Path], Result] | None = None


# nuScenes


def _nuscenes_world(folder: Path) -> None:
    world = FixtureWorld(folder, scenes=2, frames=2)
    write_can_bus(folder, "scene-0001", [row["timestamp"] for row in world.tables["sample"][:2]])


def _read_nuscenes(folder: Path) -> Result:
    """The index, samples and records of both formats, and the score of the objects themselves."""
    index = load_nuscenes(folder, VERSION, "both", str(folder / "cache"))
    mapper = NuScenesMapper(
        is_train=True,
        image_scale=0.5,
        photometric=False,
        queue_length=2,
        point_range=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        history="latest",
    )
    mono, scorer = NuScenesMonoIndex(index, MONO_CLASS_NAMES), _scorer(folder)
    found = {
        frame["sample_token"]: SampleDetections(
            boxes=index.boxes3d(i),
            scores=np.full(len(index.boxes3d(i)), 0.5),
            labels=index.labels[index.annotations(i)],
            lidar2global=index.lidar2global[i],
            ego2global=index.ego2global[i],
        )
        for i, frame in enumerate(index)
    }
    for detections in found.values():
        detections.boxes.tensor[:, 7:] = detections.boxes.tensor[:, 7:].nan_to_num()
    known = ~np.isnan(index.boxes)  # a velocity is NaN where it is unknown
    return {
        "index": {name: value for name, value in vars(index).items() if name not in ("root", "boxes")},
        "boxes": [np.where(known, index.boxes, 0), known],
        # The last frame of each scene, with the one before as its history: all images.
        "samples": [mapper(index, scene[-1], np.random.default_rng(0)) for scene in index.scenes()],
        "records": [vars(mono.record(i)) for i in index.scenes()[0]],
        "scores": scorer.score(found),
        "content": _nuscenes_content(index),
    }


def _nuscenes_content(index: NuScenesIndex) -> Result:
    """The index in the layout of :func:`reference.nuscenes_folder`."""
    order = sorted(range(len(index.cameras)), key=index.cameras.__getitem__)
    frames = []
    for i, frame in enumerate(index):
        where, boxes = index.annotations(i), index.boxes3d(i).tensor.double().numpy()
        files = [Path(frame["file_names"][c]) for c in order]
        sizes = [(int(height), int(width)) for height, width in index.image_sizes[i, order]]
        frames.append(
            {
                "tokens": (frame["sample_token"], frame["scene_token"]),
                "timestamp": frame["timestamp"],
                "files": [str(file.relative_to(index.root)) for file in files],
                "image_sizes": np.array(sizes),
                "intrinsics": index.intrinsics[i, order],
                "cameras": index.cam2lidar[i, order],
                "ego2global": index.ego2global[i],
                "lidar2global": index.lidar2global[i],
                "labels": index.labels[where].tolist(),
                "points": list(
                    zip(index.num_lidar_pts[where].tolist(), index.num_radar_pts[where].tolist(), strict=True)
                ),
                "visibility": index.visibility[where].tolist(),
                "centres": boxes[:, :3],
                "sizes": boxes[:, [4, 3, 5]],
                "velocities": boxes[:, 7:],
                "pixels": [
                    read_image(file, "a sample", size, "sample_data").numpy()
                    for file, size in zip(files, sizes, strict=True)
                ],
            }
        )
    motion = [
        row[7:16] if known else None for row, known in zip(index.can_bus, index.from_can_bus, strict=True)
    ]
    return {**{name: [frame[name] for frame in frames] for name in frames[0]}, "motion": motion}


def _nuscenes_reference(folder: Path) -> Result:
    return reference.nuscenes_folder(folder, VERSION, "both")


def _scorer(folder: Path) -> NuScenesScorer:
    return NuScenesScorer(root=folder, version=VERSION, split="both", output_dir=folder / "scores")


def _same_records(old: bytes, new: bytes) -> bool:
    """Whether a table has other values, but all its records and fields; attributes may be more or fewer."""
    try:
        trees = [strict_json(content) for content in (old, new)]
    except ValueError:
        return False
    for tree in trees:
        for row in tree if isinstance(tree, list) else ():
            if isinstance(row, dict) and isinstance(row.get("attribute_tokens"), list):
                row["attribute_tokens"] = []
    return same_shape(*trees)


def _is_splits(_: bytes, new: bytes) -> bool:
    try:
        tree = strict_json(new)
    except ValueError:
        return False
    return isinstance(tree, dict) and all(len(set(scenes)) == len(scenes) for scenes in tree.values())


def _is_can_bus(_: bytes, new: bytes) -> bool:
    def numbers(value: Any, length: int) -> bool:
        return len(value) == length and all(type(x) in (int, float) and math.isfinite(x) for x in value)

    try:
        messages = strict_json(new)
        vectors = [m[name] for m in messages for name in ("accel", "rotation_rate", "vel")]
        return all(numbers(v, 3) for v in vectors) and numbers([m["utime"] for m in messages], len(messages))
    except (ValueError, KeyError, TypeError):
        return False


def _decodes(_: bytes, new: bytes) -> bool:
    """A JPEG has no checksum: what decodes to the end of the picture is a picture."""
    try:
        with Image.open(io.BytesIO(new)) as image:
            image.load()
    except (OSError, SyntaxError):
        return False
    return True


# KITTI


def _kitti_world(folder: Path) -> None:
    """Two frames of each split, and as detections of the second the objects themselves."""
    config = KittiWorldConfig(
        seed=90, num_train_frames=2, num_val_frames=2, image_size=(320, 96), max_objects=8
    )
    generate(config, folder, progress=False)
    for path in (folder / "training" / "calib").iterdir():
        rows = path.read_text().splitlines(keepends=True)
        path.write_text("".join(row for row in rows if row.startswith(("P2", "R0"))))
    (folder / "detections").mkdir()
    for frame in (folder / "ImageSets" / "val.txt").read_text().split():
        rows = (folder / "training" / "label_2" / f"{frame}.txt").read_text().splitlines()
        found = [f"{row} 0.{9 - i}" for i, row in enumerate(rows) if not row.startswith("DontCare")]
        (folder / "detections" / f"{frame}.txt").write_text("".join(f"{row}\n" for row in found))


def _read_kitti(folder: Path) -> Result:
    """The index and the samples of both splits, and the score of the detections."""
    result: Result = {}
    for split in _SPLITS:
        index = load_kitti(folder, split, CLASSES)
        mappers = [MonoMapper(is_train=True, flip_prob=1.0, boxes2d=rule) for rule in ("projected", "label")]
        result[split] = {
            "index": {name: value for name, value in vars(index).items() if name != "folder"},
            "samples": [m(index, i, np.random.default_rng(0)) for m in mappers for i in range(len(index))],
        }
    scores = folder / "scores.json"
    words = ["--gt", folder / "training", "--det", folder / "detections", "--json", scores]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        kitti_eval.main([*map(str, words), "--split", str(folder / "ImageSets" / "val.txt")])
    return {**result, "scores": json.loads(scores.read_text()), "content": _kitti_content(folder)}


def _kitti_content(folder: Path) -> Result:
    """Both splits and the detections in the layout of :func:`reference.kitti_folder`."""
    content: Result = {}
    for split in _SPLITS:
        index = load_kitti(folder, split, CLASSES)
        records = [index.record(i) for i in range(len(index))]
        labels = [folder / "training" / "label_2" / f"{record.image_id}.txt" for record in records]
        content[split] = {
            "frames": [record.image_id for record in records],
            "cam2img": np.array([record.cam2img for record in records]),
            "labels": [_columns(read_labels(path)) for path in labels],
            "pixels": [
                read_image(record.file_name, "a frame", (record.height, record.width), "its header").numpy()
                for record in records
            ],
        }
    files = sorted((folder / "detections").glob("*.txt"))
    content["detections"] = {path.stem: _columns(read_detections(path)) for path in files}
    return content


def _columns(objects: KittiObjects) -> Result:
    columns = {name: value for name, value in vars(objects).items() if value is not None}
    return {**columns, "types": [name.lower() for name in objects.types.tolist()]}


def _kitti_reference(folder: Path) -> Result:
    return reference.kitti_folder(folder, _SPLITS)


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _are_rows(columns: int) -> Callable[[bytes, bytes], bool]:
    """Whether every row is a type and finite numbers; how many rows there are, no file says."""

    def valid(_: bytes, new: bytes) -> bool:
        try:
            rows = [line.split() for line in new.decode("ascii").splitlines() if line.strip()]
        except UnicodeDecodeError:
            return False
        known = {name.lower() for name in TYPES}
        return all(
            len(row) == columns
            and row[0].lower() in known
            and all(_NUMBER.fullmatch(word) and math.isfinite(float(word)) for word in row[1:])
            for row in rows
        )

    return valid


def _is_calibration(_: bytes, new: bytes) -> bool:
    rows = [line.partition(":") for line in new.decode(errors="replace").splitlines()]
    found = [numbers.split() for key, _, numbers in rows if key.strip() == "P2"]
    words = found[0] if len(found) == 1 else []
    return len(words) == 12 and all(_NUMBER.fullmatch(word) and math.isfinite(float(word)) for word in words)


def _is_frame_list(_: bytes, new: bytes) -> bool:
    frames = [line.strip() for line in new.decode("ascii", errors="replace").splitlines() if line.strip()]
    return len(set(frames)) == len(frames) and all(re.fullmatch(r"[0-9]{6}", frame) for frame in frames)


def _is_whole_png(_: bytes, new: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(new)) as image:
            image.verify()  # the checksums
    except (OSError, SyntaxError):
        return False
    return new.endswith(b"IEND\xaeB`\x82") and _decodes(new, new)


# YAML

_BASE = """\
MODEL:
  BACKBONE: {NORM: BN, FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, STEM_OUT_CHANNELS: 32, RES2_OUT_CHANNELS: 32, OUT_FEATURES: [res3, res4]}
  FPN: {OUT_CHANNELS: 64}
INPUT: {PHOTOMETRIC: false, RESIZE_TRAIN: [1242, 375]}
"""
_CONFIG = """\
_BASE_: base.yaml
MODEL:
  META_ARCHITECTURE: FCOS3D
  PIXEL_MEAN: [1.0, 2.0, 3.5]
DATASETS:
  FORMAT: kitti
  ROOT: data/kitti
  TRAIN: [train, val]
  CLASSES: [Car, Van]
SOLVER:
  MAX_ITER: 4000
  BASE_LR: 1.0e-4
  STEPS: (60, 80)
  AMP: {ENABLED: true, DTYPE: float16}
TEST: {EVAL_PERIOD: 0, EXPECTED_RESULTS: [[bbox, mAP, 0.25, 0.01]]}
OUTPUT_DIR: output/run
"""


def _configs(folder: Path) -> None:
    (folder / "base.yaml").write_text(_BASE)
    (folder / "config.yaml").write_text(_CONFIG)


def _read_config(folder: Path) -> Result:
    return {"config": _plain(load_config(folder / "config.yaml"))}


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return [_plain(value) for value in node] if isinstance(node, (list, tuple)) else node


def _is_mapping(_: bytes, new: bytes) -> bool:
    """Whether it is a mapping with every key once; the config knows all keys and their types."""
    try:
        node = yaml.compose(new.decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return False
    left = [node]
    while left:
        item = left.pop()
        if isinstance(item, yaml.MappingNode):
            keys = [key.value for key, _ in item.value]
            if len({str(key) for key in keys}) < len(keys):
                return False
            left += [value for _, value in item.value]
    return node is None or isinstance(node, yaml.MappingNode)


_EXPERIMENT = """\
name: small
title: A small experiment
config: configs/demo_mono/student.yaml
worlds:
  train: {root: data/a, arguments: --format kitti --train-frames 4 --val-frames 2 --seed 0}
  holdout: {root: data/a, arguments: --format kitti --train-frames 4 --val-frames 2 --seed 0}
  test: {root: data/b, arguments: --format kitti --train-frames 0 --val-frames 10 --seed 1}
evaluation: test
primary: ["Car_3D_moderate_R40@0.5"]
secondary: ["Car_3D_easy_R40@0.7"]
baseline: student
seeds: [0, 1]
average_last: 4
overrides: {SOLVER.MAX_ITER: 1500, SOLVER.CHECKPOINT_PERIOD: 100}
rows:
  - {name: student, label: student}
  - {name: wide, overrides: {MODEL.FPN.OUT_CHANNELS: 128}, seeds: [0]}
"""


def _read_experiment(folder: Path) -> Result:
    experiment = read_experiment(folder / "small.yaml")
    experiment.check()
    return {"runs": [(row.name, seed, experiment.settings(row, seed)) for row, seed in experiment.runs()]}


_TABLE_FILES = (f"{VERSION}/[!msv]*.json", f"{VERSION}/s[!p]*.json", f"{VERSION}/visibility.json")
TARGETS = (
    *(
        Target(name, cases, files, _nuscenes_world, change, _read_nuscenes, valid, _nuscenes_reference)
        for name, cases, files, change, valid in (
            ("nuScenes tables", 360, _TABLE_FILES, mutate.mutate_json, _same_records),
            ("splits.json", 100, (f"{VERSION}/splits.json",), mutate.mutate_json, _is_splits),
            ("CAN bus", 120, ("can_bus/*",), mutate.mutate_json, _is_can_bus),
            ("JPEG", 140, ("samples/CAM_*/*",), mutate.mutate_image, _decodes),
        )
    ),
    *(
        Target(name, cases, files, _kitti_world, change, _read_kitti, valid, _kitti_reference)
        for name, cases, files, change, valid in (
            ("PNG", 160, ("training/image_2/*",), mutate.mutate_image, _is_whole_png),
            ("calib", 120, ("training/calib/*",), mutate.mutate_rows, _is_calibration),
            ("labels", 140, ("training/label_2/*",), mutate.mutate_rows, _are_rows(15)),
            ("ImageSets", 100, ("ImageSets/*",), mutate.mutate_rows, _is_frame_list),
            ("detections", 160, ("detections/*",), mutate.mutate_rows, _are_rows(16)),
        )
    ),
    Target("config", 140, ("*.yaml",), _configs, mutate.mutate_yaml, _read_config, _is_mapping),
    Target(
        "experiment",
        60,
        ("*.yaml",),
        lambda folder: (folder / "small.yaml").write_text(_EXPERIMENT),
        mutate.mutate_yaml,
        _read_experiment,
        _is_mapping,
    ),
    Target(
        "weights.pth",
        100,
        ("*.pth",),
        write_weights("pth"),
        mutate.mutate_checkpoint,
        read_weights("pth"),
        same_tensors,
        expected_weights("pth"),
    ),
    Target(
        "weights.safetensors",
        100,
        ("*.safetensors",),
        write_weights("safetensors"),
        mutate.mutate_safetensors,
        read_weights("safetensors"),
        same_safetensors,
        expected_weights("safetensors"),
    ),
    Target(
        "resumed run",
        100,
        ("model_*.pth", "last_checkpoint", "metrics.json"),
        write_run,
        mutate_run,
        resume,
        same_tensors,
    ),
    *(
        Target(
            name, cases, ("*.onnx",), write_exported(kind), mutate.mutate_exported, read_exported, is_sealed
        )
        for name, cases, kind in (
            ("exported model", 100, "mono"),
            ("exported multi-view model", 60, "multi_view"),
        )
    ),
    Target(
        "results_nusc.json",
        100,
        ("results_nusc.json",),
        write_results_file,
        mutate.mutate_json,
        read_results_file,
        are_results,
        expected_results,
    ),
    Target(
        "published weights",
        80,
        ("published.pth",),
        write_published,
        mutate.mutate_checkpoint,
        import_published,
        same_published,
        expected_import,
    ),
    Target(
        "teacher cache",
        100,
        ("cache/teacher/*",),
        write_cache,
        mutate.mutate_cache,
        read_cache,
        same_cache,
        expected_cache,
    ),
)
