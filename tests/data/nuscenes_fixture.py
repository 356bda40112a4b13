"""A hand-made world in nuScenes layout: scenes of a few frames, six cameras, tiny JPEGs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.io import encode_jpeg, write_png

from bevkd2.structures import CAMERA_NAMES

VERSION = "v1.0-fixture"
IMAGE_SIZE = (36, 64)  # height, width
CATEGORIES = ("vehicle.car", "human.pedestrian.adult", "movable_object.barrier", "animal")
TABLES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)
ATTRIBUTES = ("vehicle.moving", "vehicle.parked", "pedestrian.moving", "pedestrian.standing")
CAMERA_YAWS = (90, 35, 145, -90, -160, -20)  # degrees from the lidar's +x, in the order of CAMERA_NAMES
EGO_SPEED = 4.0  # m/s along the ego's heading
EGO_YAW_RATE = 0.2  # rad/s
CAMERA_DELAY = 40_000  # microseconds after the lidar


def yaw_quaternion(yaw: float) -> list[float]:
    return [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]


def _camera_quaternion(yaw: float) -> list[float]:
    """Of a level camera (x right, y down, z forward) that looks along `yaw`, seen from the ego's frame."""
    # (1/2, -1/2, 1/2, -1/2) turns camera axes so that z looks along the ego's +x; then the yaw.
    c, s = math.cos(yaw / 2), math.sin(yaw / 2)
    w, x, y, z = 0.5, -0.5, 0.5, -0.5
    return [c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w]


def ego_pose(scene: int, seconds: float) -> tuple[list[float], list[float]]:
    """Translation and rotation of an ego that drives on a circle."""
    yaw = 0.3 + scene + EGO_YAW_RATE * seconds
    radius = EGO_SPEED / EGO_YAW_RATE
    x, y = 100.0 * (scene + 1) + radius * math.sin(yaw), 200.0 - radius * math.cos(yaw)
    return [x, y, 0.0], yaw_quaternion(yaw)


class FixtureWorld:
    """Builds the tables; tests change `tables` and call `write` again."""

    def __init__(self, root: Path, scenes: int = 2, frames: int = 3) -> None:
        self.root = root
        self.tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        self._static_tables()
        for scene in range(scenes):
            self._scene(scene, frames)
        self.splits = {
            "first": ["scene-0001"],
            "both": [f"scene-{s + 1:04d}" for s in range(scenes)],
            "train": ["scene-0001"],
        }
        self.write()

    @property
    def table_dir(self) -> Path:
        return self.root / VERSION

    def write(self) -> None:
        self.table_dir.mkdir(parents=True, exist_ok=True)
        for name, records in self.tables.items():
            (self.table_dir / f"{name}.json").write_text(json.dumps(records))
        (self.table_dir / "splits.json").write_text(json.dumps(self.splits))

    def record(self, table: str, token: str) -> dict[str, Any]:
        return next(record for record in self.tables[table] if record["token"] == token)

    def _static_tables(self) -> None:
        t = self.tables
        t["attribute"] = [{"token": f"attr-{n}", "name": n, "description": ""} for n in ATTRIBUTES]
        t["category"] = [{"token": f"cat-{n}", "name": n, "description": ""} for n in CATEGORIES]
        t["visibility"] = [{"token": str(i), "level": f"v{i}", "description": ""} for i in range(1, 5)]
        t["log"] = [
            {"token": "log", "logfile": "log", "vehicle": "v", "date_captured": "", "location": "here"}
        ]
        t["map"] = [
            {"token": "map", "category": "", "filename": "maps/blank.png", "log_tokens": ["log"]},
        ]
        (self.root / "maps").mkdir(parents=True, exist_ok=True)
        write_png(torch.zeros((1, 2, 2), dtype=torch.uint8), str(self.root / "maps" / "blank.png"))
        height, width = IMAGE_SIZE
        # The lidar is turned so that its +y is the ego's +x, as in nuScenes.
        sensors = [("LIDAR_TOP", "lidar", [0.9, 0.0, 1.8], yaw_quaternion(-math.pi / 2), [])]
        for i, (name, yaw) in enumerate(zip(CAMERA_NAMES, CAMERA_YAWS, strict=True)):
            focal = 40.0 + i
            intrinsics = [[focal, 0.0, width / 2 + i], [0.0, focal + 1, height / 2 - 1], [0.0, 0.0, 1.0]]
            rotation = _camera_quaternion(math.radians(yaw - 90))
            sensors.append((name, "camera", [1.0 + 0.1 * i, 0.1 * i, 1.5], rotation, intrinsics))
        for name, modality, translation, rotation, intrinsics in sensors:
            t["sensor"].append({"token": f"sensor-{name}", "channel": name, "modality": modality})
            t["calibrated_sensor"].append(
                {
                    "token": f"cs-{name}",
                    "sensor_token": f"sensor-{name}",
                    "translation": translation,
                    "rotation": rotation,
                    "camera_intrinsic": intrinsics,
                }
            )

    def _scene(self, scene: int, frames: int) -> None:
        samples = [f"s{scene}f{f}" for f in range(frames)]
        self.tables["scene"].append(
            {
                "token": f"scene{scene}",
                "name": f"scene-{scene + 1:04d}",
                "log_token": "log",
                "nbr_samples": frames,
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "description": "",
            }
        )
        for f, token in enumerate(samples):
            timestamp = 1_000_000_000 + scene * 100_000_000 + f * 500_000
            self.tables["sample"].append(
                {
                    "token": token,
                    "timestamp": timestamp,
                    "scene_token": f"scene{scene}",
                    **self._links(samples, f),
                }
            )
            for channel in ("LIDAR_TOP", *CAMERA_NAMES):
                self._sample_data(scene, f, token, channel, timestamp)
            self._annotations(scene, f, samples)

    @staticmethod
    def _links(tokens: list[str], i: int) -> dict[str, str]:
        return {"prev": tokens[i - 1] if i else "", "next": tokens[i + 1] if i + 1 < len(tokens) else ""}

    def _sample_data(self, scene: int, frame: int, sample: str, channel: str, timestamp: int) -> None:
        token = f"{sample}-{channel}"
        camera = channel != "LIDAR_TOP"
        delay = CAMERA_DELAY if camera else 0
        translation, rotation = ego_pose(scene, frame * 0.5 + delay * 1e-6)
        self.tables["ego_pose"].append(
            {
                "token": token,
                "timestamp": timestamp + delay,
                "translation": translation,
                "rotation": rotation,
            }
        )
        filename = f"samples/{channel}/{token}.{'jpg' if camera else 'pcd.bin'}"
        if camera:
            path = self.root / filename
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes(seed=scene * 1000 + frame * 10 + CAMERA_NAMES.index(channel)))
        self.tables["sample_data"].append(
            {
                "token": token,
                "sample_token": sample,
                "ego_pose_token": token,
                "calibrated_sensor_token": f"cs-{channel}",
                "timestamp": timestamp + delay,
                "fileformat": "jpg" if camera else "pcd",
                "is_key_frame": True,
                "height": IMAGE_SIZE[0] if camera else 0,
                "width": IMAGE_SIZE[1] if camera else 0,
                "filename": filename,
                "prev": "",
                "next": "",
            }
        )

    def _annotations(self, scene: int, frame: int, samples: list[str]) -> None:
        """A moving car ahead, a pedestrian, a barrier without points, an animal and a car far away."""
        (x, y, _), _ = ego_pose(scene, frame * 0.5)
        objects = (
            # category, offset from the ego, size w l h, yaw, attribute, lidar points; the car drives along x
            ("vehicle.car", (10.0 + 1.0 * frame, 5.0), (1.9, 4.6, 1.7), 0.1, "vehicle.moving", 30),
            ("human.pedestrian.adult", (-6.0, -8.0), (0.7, 0.8, 1.8), 1.2, "pedestrian.standing", 4),
            ("movable_object.barrier", (4.0, -12.0), (2.5, 0.5, 1.0), -2.0, None, 0),
            ("animal", (3.0, 9.0), (0.3, 0.6, 0.5), 0.0, None, 7),
            ("vehicle.car", (70.0, 0.0), (2.0, 4.4, 1.6), 3.0, "vehicle.parked", 2),
        )
        origin = ego_pose(scene, 0.0)[0]
        for k, (category, (dx, dy), size, yaw, attribute, points) in enumerate(objects):
            tokens = [f"{sample}-a{k}" for sample in samples]
            if frame == 0:
                self.tables["instance"].append(
                    {
                        "token": f"scene{scene}-i{k}",
                        "category_token": f"cat-{category}",
                        "nbr_annotations": len(samples),
                        "first_annotation_token": tokens[0],
                        "last_annotation_token": tokens[-1],
                    }
                )
            base = (x, y) if category == "vehicle.car" and dx > 50 else origin
            self.tables["sample_annotation"].append(
                {
                    "token": tokens[frame],
                    "sample_token": samples[frame],
                    "instance_token": f"scene{scene}-i{k}",
                    "visibility_token": "4",
                    "attribute_tokens": [f"attr-{attribute}"] if attribute else [],
                    "translation": [base[0] + dx, base[1] + dy, size[2] / 2],
                    "size": list(size),
                    "rotation": yaw_quaternion(yaw),
                    "num_lidar_pts": points,
                    "num_radar_pts": 0,
                    **self._links(tokens, frame),
                }
            )


def image_bytes(seed: int) -> bytes:
    """A smooth JPEG that differs with the seed."""
    rng = np.random.default_rng(seed)
    height, width = IMAGE_SIZE
    coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, 3, 4))).float()
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return bytes(encode_jpeg(image.to(torch.uint8), quality=95).numpy())


def write_can_bus(root: Path, scene_name: str, timestamps: list[int]) -> None:
    """Pose messages 20 ms before each timestamp, and one after the last."""
    times = [t - 20_000 for t in timestamps] + [timestamps[-1] + 1]
    messages = [
        {
            "utime": t,
            "accel": [i, 0.1, 9.8],
            "rotation_rate": [0.0, 0.0, 0.01 * i],
            "vel": [5.0 + i, 0.0, 0.0],
            "pos": [0.0, 0.0, 0.0],
            "orientation": [1.0, 0.0, 0.0, 0.0],
        }
        for i, t in enumerate(times)
    ]
    (root / "can_bus").mkdir(exist_ok=True)
    (root / "can_bus" / f"{scene_name}_pose.json").write_text(json.dumps(messages))
