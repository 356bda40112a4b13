"""Straightforward readings of the files by other means than bevkd2's, to compare what it accepts with.

Each function reads a folder of a target as it is, mutated or not, and returns what bevkd2 must have got of
it: the values that the target's own reading has as "content". Nothing is checked: what cannot be read raises.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from tests.fuzz.validity import Result

Array = npt.NDArray[Any]
_DETECTED = {
    "vehicle.car": "car",
    "human.pedestrian.adult": "pedestrian",
    "movable_object.barrier": "barrier",
}
_CLASSES = (
    *("car", "truck", "construction_vehicle", "bus", "trailer"),
    *("barrier", "motorcycle", "bicycle", "pedestrian", "traffic_cone"),
)
# How far from the ego, in metres, the official evaluation looks at the detections of a class.
_RANGES = {
    **dict.fromkeys(("car", "truck", "bus", "trailer", "construction_vehicle"), 50.0),
    **dict.fromkeys(("pedestrian", "motorcycle", "bicycle"), 40.0),
    **dict.fromkeys(("traffic_cone", "barrier"), 30.0),
}
_NUMPY_TYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1"},
    **{"U8": "<u1", "BOOL": "?", "C64": "<c8"},
}
_KITTI_FIELDS = {
    "truncated": slice(0, 1),
    "occluded": slice(1, 2),
    "alpha": slice(2, 3),
    "boxes2d": slice(3, 7),
    "sizes": slice(7, 10),
    "location": slice(10, 13),
    "rotation_y": slice(13, 14),
    "scores": slice(14, 15),
}


def agree(expected: Any, found: Any) -> bool:
    """Whether two values are the same; of real numbers, but for the rounding of 32 bits."""
    if isinstance(expected, (torch.Tensor, np.ndarray)) or isinstance(found, (torch.Tensor, np.ndarray)):
        expected, found = (np.asarray(value) for value in (expected, found))
        if expected.shape != found.shape:
            return False
        if expected.dtype.kind not in "fc" and found.dtype.kind not in "fc":
            return bool((expected == found).all())
        finite = np.abs(expected[np.isfinite(expected)])
        scale = float(finite.max()) if finite.size else 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            return bool(np.allclose(found, expected, rtol=1e-5, atol=1e-5 * max(scale, 1), equal_nan=True))
    if isinstance(expected, float) and isinstance(found, (float, int)):
        return expected == found or (math.isnan(expected) and math.isnan(found))
    return bool(expected == found)


# nuScenes


def nuscenes_folder(folder: Path, version: str, split: str) -> Result:
    """Tokens, times, images, poses, boxes and CAN bus of the frames of a split, as its tables say."""
    tables = {
        path.stem: json.loads(path.read_text("utf-8-sig")) for path in (folder / version).glob("*.json")
    }
    rows = {name: {row["token"]: row for row in table} for name, table in tables.items() if name != "splits"}
    scenes = [row for row in tables["scene"] if row["name"] in tables["splits"][split]]
    chains = sorted((_chain(rows["sample"], row) for row in scenes), key=lambda chain: chain[0]["timestamp"])
    frames = [_frame(folder, rows, sample) for chain in chains for sample in chain]
    content = {name: [frame[name] for frame in frames] for name in frames[0]}
    content["motion"] = [motion for chain in chains for motion in _motion(folder, rows["scene"], chain)]
    return content


def _chain(samples: dict[str, Any], scene: dict[str, Any]) -> list[dict[str, Any]]:
    chain = [samples[scene["first_sample_token"]]]
    while chain[-1]["next"]:
        chain.append(samples[chain[-1]["next"]])
    return chain


def _frame(folder: Path, rows: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
    cameras: dict[str, Any] = {}
    for data in rows["sample_data"].values():
        if data["is_key_frame"] and data["sample_token"] == sample["token"]:
            calibration = rows["calibrated_sensor"][data["calibrated_sensor_token"]]
            cameras[rows["sensor"][calibration["sensor_token"]]["channel"]] = (data, calibration)
    data, calibration = cameras.pop("LIDAR_TOP")
    ego = _pose(rows["ego_pose"][data["ego_pose_token"]])
    lidar = ego @ _pose(calibration)
    views = [cameras[name] for name in sorted(cameras)]
    poses = [_pose(rows["ego_pose"][data["ego_pose_token"]]) for data, _ in views]
    objects = [row for row in rows["sample_annotation"].values() if row["sample_token"] == sample["token"]]
    kept = [(row, _detected(rows, row)) for row in objects if _detected(rows, row)]
    return {
        "tokens": (sample["token"], sample["scene_token"]),
        "timestamp": sample["timestamp"],
        "files": [data["filename"] for data, _ in views],
        "image_sizes": np.array([(data["height"], data["width"]) for data, _ in views]),
        "intrinsics": np.array([calibration["camera_intrinsic"] for _, calibration in views], dtype=float),
        "cameras": np.array(
            [
                np.linalg.inv(lidar) @ pose @ _pose(calibration)
                for pose, (_, calibration) in zip(poses, views, strict=True)
            ]
        ),
        "ego2global": ego,
        "lidar2global": lidar,
        "labels": [_CLASSES.index(name) for _, name in kept],
        "points": [(row["num_lidar_pts"], row["num_radar_pts"]) for row, _ in kept],
        "visibility": [int(row["visibility_token"] or 0) for row, _ in kept],
        "centres": np.array([_inside(lidar, row["translation"]) for row, _ in kept]),
        "sizes": np.array([row["size"] for row, _ in kept], dtype=float),
        "velocities": np.array([_velocity(rows, lidar, row) for row, _ in kept]),
        "pixels": [pixels(folder / data["filename"]) for data, _ in views],
    }


def _detected(rows: dict[str, Any], annotation: dict[str, Any]) -> str | None:
    instance = rows["instance"][annotation["instance_token"]]
    return _DETECTED.get(rows["category"][instance["category_token"]]["name"])


def _pose(row: dict[str, Any]) -> Array:
    w, x, y, z = np.array(row["rotation"], dtype=float) / np.linalg.norm(row["rotation"])
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = row["translation"]
    return pose


def _inside(pose: Array, point: list[float]) -> Array:
    inside: Array = (np.linalg.inv(pose) @ [*point, 1.0])[:3]
    return inside


def _velocity(rows: dict[str, Any], lidar: Array, row: dict[str, Any]) -> Array:
    """Of the neighbours in the lidar's axes; NaN without one, or where it is too long ago."""
    table = rows["sample_annotation"]
    first, last = (table[row[way]] if row[way] else row for way in ("prev", "next"))
    seconds = 1e-6 * (_time(rows, last) - _time(rows, first))
    steps = bool(row["prev"]) + bool(row["next"])
    if not steps or seconds > 1.5 * steps:
        return np.full(2, math.nan)
    moved = (np.array(last["translation"], dtype=float) - first["translation"]) / seconds
    inside: Array = (lidar[:3, :3].T @ [moved[0], moved[1], 0.0])[:2]
    return inside


def _time(rows: dict[str, Any], annotation: dict[str, Any]) -> float:
    time: float = rows["sample"][annotation["sample_token"]]["timestamp"]
    return time


def _motion(folder: Path, scenes: dict[str, Any], chain: list[dict[str, Any]]) -> list[Any]:
    """Of each frame what the last message before it says; None without a file, or without one near."""
    path = folder / "can_bus" / f"{scenes[chain[0]['scene_token']]['name']}_pose.json"
    if not path.is_file():
        return [None for _ in chain]
    messages = sorted(json.loads(path.read_text("utf-8-sig")), key=lambda message: message["utime"])
    found = []
    for sample in chain:
        before = [message for message in messages if message["utime"] <= sample["timestamp"]] or messages[:1]
        found.append(np.concatenate([before[-1][name] for name in ("accel", "rotation_rate", "vel")]))
    return found


def nuscenes_results(folder: Path, version: str) -> Result:
    """The detections of a results file by sample, and scores and labels of those within range."""
    results = json.loads((folder / "results_nusc.json").read_text("utf-8-sig"))["results"]
    tables = {name: json.loads((folder / version / f"{name}.json").read_text()) for name in ("ego_pose",)}
    egos = {row["token"].removesuffix("-LIDAR_TOP"): row["translation"] for row in tables["ego_pose"]}
    drawn = {}
    for token, rows in results.items():
        near = [
            (row["detection_score"], _CLASSES.index(row["detection_name"]))
            for row in rows
            if math.dist(row["translation"][:2], egos[token][:2]) < _RANGES[row["detection_name"]]
        ]
        drawn[token] = sorted(near)
    return {"results": results, "drawn": drawn}


# KITTI


def kitti_folder(folder: Path, splits: tuple[str, ...]) -> Result:
    """Frames, projections, pixels, labels and detections: a table read word by word, as C does."""
    content: Result = {}
    for split in splits:
        frames = _text(folder / "ImageSets" / f"{split}.txt").split()
        training = folder / "training"
        content[split] = {
            "frames": frames,
            "cam2img": np.array([_projection(training / "calib" / f"{frame}.txt") for frame in frames]),
            "labels": [_objects(training / "label_2" / f"{frame}.txt", 15) for frame in frames],
            "pixels": [pixels(training / "image_2" / f"{frame}.png") for frame in frames],
        }
    content["detections"] = {
        path.stem: _objects(path, 16) for path in sorted((folder / "detections").glob("*.txt"))
    }
    return content


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig", errors="replace")


def _projection(path: Path) -> Array:
    (numbers,) = (
        numbers
        for key, _, numbers in (line.partition(":") for line in _text(path).splitlines())
        if key.strip() == "P2"
    )
    return np.array([*map(float, numbers.split()), 0, 0, 0, 1]).reshape(4, 4)


def _objects(path: Path, columns: int) -> dict[str, Any]:
    words = _text(path).split()
    rows = [words[i : i + columns] for i in range(0, len(words), columns)]
    values = np.array([[float(word) for word in row[1:]] for row in rows]).reshape(len(rows), columns - 1)
    found: dict[str, Any] = {"types": [row[0].lower() for row in rows]}
    for name, where in _KITTI_FIELDS.items():
        if where.start < columns - 1:
            column = values[:, where] if where.stop - where.start > 1 else values[:, where.start]
            # An occlusion is a small number; bevkd2 documents that it cuts off what 32 bits do not hold.
            found[name] = np.trunc(column).clip(-(2**31), 2**31) if name == "occluded" else column
    return found


def pixels(path: Path) -> Array:
    """(3, H, W) by Pillow; of 16 bits a channel the high byte."""
    with Image.open(path) as image:
        if image.mode.startswith("I"):
            high = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
            return np.repeat(high[None], 3, axis=0)
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


# Weights


def tensors(path: Path) -> dict[str, Any]:
    """The tensors of a weights file by name; those of a .safetensors file by its header alone."""
    if path.suffix == ".pth":
        content = torch.load(path, weights_only=True)
        for key in ("model", "state_dict"):
            content = content[key] if isinstance(content.get(key), dict) else content
        return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    return safetensors(path.read_bytes())


def safetensors(data: bytes) -> dict[str, Any]:
    """The arrays of a safetensors file, by its specification."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        numbers = np.frombuffer(data[8 + length + begin : 8 + length + end], _NUMPY_TYPES[entry["dtype"]])
        found[name] = numbers.reshape(entry["shape"])
    return found


def compressed_safetensors(path: Path) -> dict[str, Any]:
    """The arrays of a file of a teacher's cache."""
    return safetensors(zlib.decompress(path.read_bytes()))
