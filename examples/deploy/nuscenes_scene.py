"""Runs an exported multi-view detector over scenes in nuScenes' layout, without torch, and writes results.

    python examples/deploy/nuscenes_scene.py student.onnx data/demo v1.0-synthetic results.json

The results are in the format of nuscenes-devkit's detection task. Needed: numpy, Pillow, onnxruntime, bevkd2.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bevkd2 import runtime
from bevkd2.nuscenes.attributes import attribute_of
from bevkd2.runtime.ego import quaternion

Record = dict[str, Any]


class Tables:
    """The tables that a detector's inputs are made of."""

    def __init__(self, folder: Path) -> None:
        def read(name: str) -> dict[str, Record]:
            return {record["token"]: record for record in json.loads((folder / f"{name}.json").read_text())}

        self.scenes, self.samples, self.poses = read("scene"), read("sample"), read("ego_pose")
        sensors = read("sensor")
        self.calibrations = read("calibrated_sensor")
        self.frames: dict[str, dict[str, Record]] = defaultdict(dict)
        for record in read("sample_data").values():
            if record["is_key_frame"]:
                sensor = self.calibrations[record["calibrated_sensor_token"]]["sensor_token"]
                self.frames[record["sample_token"]][sensors[sensor]["channel"]] = record

    def samples_of(self, scene: Record) -> Iterator[Record]:
        """Yields the key frames of a scene in order."""
        token = scene["first_sample_token"]
        while token:
            yield self.samples[token]
            token = self.samples[token]["next"]

    def ego2global(self, record: Record) -> np.ndarray:
        """Returns (4, 4): the ego's pose when the sensor recorded."""
        return matrix(self.poses[record["ego_pose_token"]])

    def sensor2global(self, record: Record) -> np.ndarray:
        """Returns (4, 4): the sensor's pose when it recorded."""
        return self.ego2global(record) @ matrix(self.calibrations[record["calibrated_sensor_token"]])


def matrix(record: Record) -> np.ndarray:
    """Returns (4, 4) of a record's translation and quaternion."""
    w, x, y, z = np.array(record["rotation"]) / np.linalg.norm(record["rotation"])
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = record["translation"]
    return pose


def camera_inputs(
    root: Path, tables: Tables, frame: dict[str, Record], description: Record
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images (N, 3, H, W) and lidar2img (N, 4, 4) of a key frame."""
    lidar2global = tables.sensor2global(frame["LIDAR_TOP"])
    height, width = description["inputs"][0]["shape"][-2:]
    images, matrices = [], []
    for camera in description["cameras"]:
        record = frame[camera]
        image = Image.open(root / record["filename"]).convert("RGB")
        scale = np.diag([width / image.width, height / image.height, 1.0, 1.0])
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        images.append(np.asarray(image).transpose(2, 0, 1))
        intrinsics = np.eye(4)
        intrinsics[:3, :3] = tables.calibrations[record["calibrated_sensor_token"]]["camera_intrinsic"]
        lidar2cam = np.linalg.inv(tables.sensor2global(record)) @ lidar2global
        matrices.append(scale @ intrinsics @ lidar2cam)
    return np.stack(images), np.stack(matrices)


def results_of(
    token: str, found: runtime.Detections, lidar2global: np.ndarray, classes: list[str]
) -> list[Record]:
    """Returns a sample's entry of the results file, in the global frame."""
    results = []
    for box, score, label in zip(found.boxes.astype(np.float64), found.scores, found.labels, strict=True):
        velocity = lidar2global[:3, :3] @ [box[7], box[8], 0.0]
        turn = np.eye(4)
        turn[:2, :2] = [[math.cos(box[6]), -math.sin(box[6])], [math.sin(box[6]), math.cos(box[6])]]
        name = classes[label]
        results.append(
            {
                "sample_token": token,
                "translation": (lidar2global @ [*box[:3], 1.0])[:3].tolist(),
                "size": [box[4], box[3], box[5]],  # nuScenes: width, length, height
                "rotation": quaternion(lidar2global @ turn).tolist(),
                "velocity": velocity[:2].tolist(),
                "detection_name": name,
                "detection_score": float(score),
                "attribute_name": attribute_of(name, math.hypot(*velocity[:2])),
            }
        )
    return results


def main() -> None:
    """Runs all scenes of a version, or those that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="an .onnx file of bevkd2 export")
    parser.add_argument("root", type=Path, help="the data set")
    parser.add_argument("version", help="the folder of its tables")
    parser.add_argument("output", type=Path, help="results file to write")
    parser.add_argument("--scenes", nargs="*", default=[], help="names; by default all")
    args = parser.parse_args()
    detector = runtime.load(args.model)
    tables, results = Tables(args.root / args.version), {}
    for scene in tables.scenes.values():
        if args.scenes and scene["name"] not in args.scenes:
            continue
        for sample in tables.samples_of(scene):
            frame = tables.frames[sample["token"]]
            images, lidar2img = camera_inputs(args.root, tables, frame, detector.description)
            found = detector.detect(
                images,
                lidar2img,
                timestamp=sample["timestamp"],
                scene=scene["token"],
                ego2global=tables.ego2global(frame["LIDAR_TOP"]),
            )
            lidar2global = tables.sensor2global(frame["LIDAR_TOP"])
            classes = detector.description["classes"]
            results[sample["token"]] = results_of(sample["token"], found, lidar2global, classes)
    meta = {f"use_{kind}": kind == "camera" for kind in ("camera", "lidar", "radar", "map", "external")}
    args.output.write_text(json.dumps({"meta": meta, "results": results}))
    print(f"{args.output}: {len(results)} key frames, {sum(map(len, results.values()))} detections")


if __name__ == "__main__":
    main()
