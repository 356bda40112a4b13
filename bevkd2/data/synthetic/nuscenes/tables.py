"""The thirteen tables of nuScenes v1.0, and splits.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevkd2.data.synthetic.nuscenes.config import WorldConfig
from bevkd2.data.synthetic.nuscenes.rig import euler_quaternion
from bevkd2.data.synthetic.nuscenes.scene import ATTRIBUTES, CLASSES, FRAME_INTERVAL
from bevkd2.data.synthetic.scene import Scene, Sensor, WorldObject
from bevkd2.structures import CAMERA_NAMES, invert_pose, pose_matrix

Record = dict[str, Any]
Tables = dict[str, list[Record]]

TABLE_NAMES = (
    "category",
    "attribute",
    "visibility",
    "instance",
    "sensor",
    "calibrated_sensor",
    "ego_pose",
    "log",
    "scene",
    "sample",
    "sample_data",
    "sample_annotation",
    "map",
)
VISIBILITY_LEVELS = ("v0-40", "v40-60", "v60-80", "v80-100")
"""Levels of nuScenes for the tokens "1" to "4": visible share of an object in all cameras, per cent."""
MAP_FILE = "maps/blank.png"

# Microseconds: 2018-07-24, when nuScenes was recorded; scenes are a thousand seconds apart.
_FIRST_TIMESTAMP = 1_532_400_000_000_000
_SCENE_INTERVAL = 1_000_000_000


def token(*parts: object) -> str:
    """Returns a token of 32 hexadecimal digits that depends only on the parts."""
    text = "/".join(str(part) for part in parts)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def timestamp(scene_index: int, frame: int) -> int:
    """Returns the time of a key frame in microseconds.

    Args:
        scene_index: the scene, from 0; scenes are a thousand seconds apart.
        frame: the key frame in its scene, from 0.
    """
    return _FIRST_TIMESTAMP + scene_index * _SCENE_INTERVAL + round(frame * FRAME_INTERVAL * 1e6)


def image_path(config: WorldConfig, scene_index: int, frame: int, sensor: Sensor) -> str:
    """Returns the path of a sensor's file below the root of the data set; there is no file of the lidar.

    Args:
        config: names the scenes.
        scene_index: the scene, from 0.
        frame: the key frame in its scene, from 0.
        sensor: the camera or the lidar, whose delay is part of the time in the name.
    """
    stamp = timestamp(scene_index, frame) + sensor.delay
    suffix = "pcd.bin" if sensor.intrinsics is None else "jpg"
    name = config.scene_name(scene_index)
    return f"samples/{sensor.channel}/{name}__{sensor.channel}__{stamp}.{suffix}"


def shared_tables(config: WorldConfig) -> Tables:
    """Returns the tables that do not belong to a scene: category, attribute, visibility, sensor, map."""
    channels = ["LIDAR_TOP", *CAMERA_NAMES]
    return {
        "category": [
            {"token": token("category", c.category), "name": c.category, "description": c.name}
            for c in CLASSES
        ],
        "attribute": [{"token": token("attribute", a), "name": a, "description": ""} for a in ATTRIBUTES],
        "visibility": [
            {"token": str(i + 1), "level": level, "description": f"visibility of the whole object: {level} %"}
            for i, level in enumerate(VISIBILITY_LEVELS)
        ],
        "sensor": [
            {
                "token": token("sensor", c),
                "channel": c,
                "modality": "camera" if c.startswith("CAM") else "lidar",
            }
            for c in channels
        ],
        "map": [
            {
                "token": token("map"),
                "category": "semantic_prior",
                "filename": MAP_FILE,
                "log_tokens": [token("log", config.seed, i) for i in range(config.num_scenes)],
            }
        ],
    }


class SceneTables:
    """Collects the records of one scene."""

    def __init__(self, config: WorldConfig, scene: Scene, index: int) -> None:
        """Writes the records that do not depend on frames: scene, log, calibrated sensors, instances.

        Args:
            config: the world.
            scene: the drawn scene.
            index: index of the scene.
        """
        self._config, self._scene, self._index = config, scene, index
        self._annotated = [item for item in scene.objects if item.kind is not None]
        self.tables: Tables = {name: [] for name in TABLE_NAMES}
        last = config.frames_per_scene - 1
        self.tables["log"].append(
            {
                "token": self._token("log"),
                "logfile": f"synthetic-log-{index:04d}",
                "vehicle": f"synthetic-{index:04d}",
                "date_captured": "2018-07-24",
                "location": "synthetic",
            }
        )
        self.tables["scene"].append(
            {
                "token": self._token("scene"),
                "log_token": self._token("log"),
                "nbr_samples": config.frames_per_scene,
                "first_sample_token": self._token("sample", 0),
                "last_sample_token": self._token("sample", last),
                "name": config.scene_name(index),
                "description": "A synthetic test world: textured boxes along a curved road",
            }
        )
        self.tables["calibrated_sensor"] = [self._calibration(sensor) for sensor in scene.rig]
        self.tables["instance"] = [self._instance(i, item, last) for i, item in enumerate(self._annotated)]

    def _token(self, kind: str, *parts: object) -> str:
        return token(kind, self._config.seed, self._index, *parts)

    def _link(self, kind: str, frame: int, *parts: object) -> str:
        """Returns the token of a record in a chain over frames; "" before the first and after the last."""
        return self._token(kind, frame, *parts) if 0 <= frame < self._config.frames_per_scene else ""

    def _calibration(self, sensor: Sensor) -> Record:
        return {
            "token": self._token("calibrated_sensor", sensor.channel),
            "sensor_token": token("sensor", sensor.channel),
            "translation": sensor.translation.tolist(),
            "rotation": sensor.rotation.tolist(),
            "camera_intrinsic": [] if sensor.intrinsics is None else sensor.intrinsics.tolist(),
        }

    def _instance(self, i: int, item: WorldObject, last: int) -> Record:
        assert item.kind is not None
        return {
            "token": self._token("instance", i),
            "category_token": token("category", item.kind.category),
            "nbr_annotations": last + 1,
            "first_annotation_token": self._token("sample_annotation", 0, i),
            "last_annotation_token": self._token("sample_annotation", last, i),
        }

    def add_frame(self, frame: int, visible: npt.NDArray[Any], unoccluded: npt.NDArray[Any]) -> None:
        """Writes a key frame.

        Args:
            frame: number of the key frame in the scene.
            visible: (n,) number of pixels in all cameras that show each object of the scene.
            unoccluded: (n,) the same without occlusion.
        """
        self.tables["sample"].append(
            {
                "token": self._token("sample", frame),
                "timestamp": timestamp(self._index, frame),
                "prev": self._link("sample", frame - 1),
                "next": self._link("sample", frame + 1),
                "scene_token": self._token("scene"),
            }
        )
        for sensor in self._scene.rig:
            self._add_sensor_data(frame, sensor)
        reached = self._in_lidar_range(frame)
        for i, item in enumerate(self._annotated):
            seen = visible[i] >= self._config.min_visible_pixels and reached[i]
            points = int(visible[i]) if seen else 0
            share = visible[i] / unoccluded[i] if unoccluded[i] > 0 else 0.0
            self.tables["sample_annotation"].append(self._annotation(frame, i, item, share, points))

    def _add_sensor_data(self, frame: int, sensor: Sensor) -> None:
        position, heading = self._scene.road.path.pose(frame * FRAME_INTERVAL + sensor.delay * 1e-6)
        stamp = timestamp(self._index, frame) + sensor.delay
        width, height = (0, 0) if sensor.intrinsics is None else self._config.image_size
        # In nuScenes every sample_data has its own ego pose, with the same token.
        own_token = self._token("sample_data", frame, sensor.channel)
        self.tables["ego_pose"].append(
            {
                "token": own_token,
                "timestamp": stamp,
                "translation": [*position.tolist(), 0.0],
                "rotation": euler_quaternion(heading).tolist(),
            }
        )
        self.tables["sample_data"].append(
            {
                "token": own_token,
                "sample_token": self._token("sample", frame),
                "ego_pose_token": own_token,
                "calibrated_sensor_token": self._token("calibrated_sensor", sensor.channel),
                "timestamp": stamp,
                "fileformat": "pcd" if sensor.intrinsics is None else "jpg",
                "is_key_frame": True,
                "height": height,
                "width": width,
                "filename": image_path(self._config, self._index, frame, sensor),
                "prev": self._link("sample_data", frame - 1, sensor.channel),
                "next": self._link("sample_data", frame + 1, sensor.channel),
            }
        )

    def _in_lidar_range(self, frame: int) -> npt.NDArray[Any]:
        """Returns (n,) whether the centre of each annotated object is in the square range of the lidar."""
        time = frame * FRAME_INTERVAL
        position, heading = self._scene.road.path.pose(time)
        ego2global = pose_matrix([*position, 0.0], euler_quaternion(heading))
        global2lidar = invert_pose(ego2global @ self._scene.rig[0].sensor2ego)
        centers = np.array([item.center(time) for item in self._annotated]).reshape(-1, 3)
        local = centers @ global2lidar[:3, :3].T + global2lidar[:3, 3]
        in_range: npt.NDArray[Any] = np.abs(local[:, :2]).max(axis=1, initial=0.0) < self._config.lidar_range
        return in_range

    def _annotation(self, frame: int, i: int, item: WorldObject, share: float, points: int) -> Record:
        length, width, height = item.size.tolist()
        level = 1 + int(np.searchsorted([0.4, 0.6, 0.8], share, side="right"))
        return {
            "token": self._token("sample_annotation", frame, i),
            "sample_token": self._token("sample", frame),
            "instance_token": self._token("instance", i),
            "visibility_token": str(level),
            "attribute_tokens": [] if item.attribute is None else [token("attribute", item.attribute)],
            "translation": item.center(frame * FRAME_INTERVAL).tolist(),
            "size": [width, length, height],
            "rotation": euler_quaternion(item.yaw).tolist(),
            "prev": self._link("sample_annotation", frame - 1, i),
            "next": self._link("sample_annotation", frame + 1, i),
            "num_lidar_pts": points,
            "num_radar_pts": 0,
        }


def write_tables(config: WorldConfig, scenes: list[Tables], root: Path) -> None:
    """Writes every table and splits.json.

    Args:
        config: the world.
        scenes: the tables of each scene, in order.
        root: the root of the data set; its folder ``config.version`` is created.
    """
    folder = root / config.version
    folder.mkdir(parents=True)
    shared = shared_tables(config)
    for name in TABLE_NAMES:
        records = shared.get(name, []) + [record for tables in scenes for record in tables[name]]
        (folder / f"{name}.json").write_text(json.dumps(records))
    (folder / "splits.json").write_text(json.dumps(config.splits()))
