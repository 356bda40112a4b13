"""Writes tables of the size of nuScenes' v1.0-trainval: the records are made up, the images shared."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np

from bevkd2.data.synthetic.nuscenes.rig import euler_quaternion, make_rig
from bevkd2.data.synthetic.nuscenes.scene import ATTRIBUTES, CLASSES
from bevkd2.data.synthetic.nuscenes.tables import VISIBILITY_LEVELS
from bevkd2.data.synthetic.parallel import write_image
from bevkd2.nuscenes.devkit import create_splits_scenes
from bevkd2.structures import CAMERA_NAMES

VERSION = "v1.0-trainval"
RADARS = ("RADAR_FRONT", "RADAR_FRONT_LEFT", "RADAR_FRONT_RIGHT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT")
_IMAGES = 4  # files per camera, which all key frames share
_PERIOD = 500_000  # microseconds between key frames
_START = 1_532_400_000_000_000  # of the first scene
_SCENE_PERIOD = 1_000_000_000


@dataclasses.dataclass(frozen=True)
class Size:
    """How much to write; the defaults are v1.0-trainval's.

    Attributes:
        train_scenes: scenes of the official split ``train``, 700 at most.
        val_scenes: those of ``val``, 150 at most.
        samples: key frames in all.
        annotations: records of sample_annotation in all, at most.
        sample_data: key frames and sweeps of the 12 sensors in all, at most.
        lifetime: key frames in which an object is annotated.
        image_size: (width, height) of the images.
    """

    train_scenes: int = 700
    val_scenes: int = 150
    samples: int = 34_149
    annotations: int = 1_166_187
    sample_data: int = 2_631_083
    lifetime: int = 18
    image_size: tuple[int, int] = (1600, 900)


def write_tables(root: Path, size: Size, image: Callable[[int], np.ndarray]) -> dict[str, int]:
    """Writes tables and images.

    Args:
        root: the data set's root, an empty folder.
        size: how much to write.
        image: makes the (H, W, 3) uint8 image of a number; few are made.

    Returns:
        The number of records of each table.
    """
    for camera in CAMERA_NAMES:
        for number in range(_IMAGES):
            quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
            write_image(root / _filename(camera, "samples", number, "jpg"), image(number), quality)
    splits = create_splits_scenes()
    names = sorted([*splits["train"][: size.train_scenes], *splits["val"][: size.val_scenes]])
    folder = root / VERSION
    folder.mkdir()
    with ExitStack() as stack:
        writer = _Writer(folder, stack)
        writer.write_shared()
        for number, name in enumerate(names):
            frames = size.samples // len(names) + (number < size.samples % len(names))
            _Scene(writer, size, number, name, frames).write()
        writer.close()
    return writer.counts


def _filename(channel: str, kind: str, number: int, suffix: str) -> str:
    """A name of the length of nuScenes' own."""
    drive, stamp = "n015-2018-07-24-11-22-45+0800", _START + number % _IMAGES
    return f"{kind}/{channel}/{drive}__{channel}__{stamp:016d}.{suffix}"


class _Writer:
    """Appends records to the tables, in nuScenes' form: a field a line."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._files: dict[str, TextIO] = {}
        self._random = random.Random(0)
        self.counts: dict[str, int] = {}
        self.categories = {kind.category: self.token() for kind in CLASSES}
        self.attributes = {name: self.token() for name in ATTRIBUTES}
        self.sensors = {name: self.token() for name in ("LIDAR_TOP", *CAMERA_NAMES, *RADARS)}

    def token(self) -> str:
        """Returns a token of 32 hexadecimal digits."""
        return f"{self._random.getrandbits(128):032x}"

    def add(self, table: str, text: str) -> None:
        """Appends a record: its fields as JSON."""
        if table not in self._files:
            path = self._folder / f"{table}.json"
            self._files[table] = self._stack.enter_context(path.open("w", encoding="utf-8"))
            self.counts[table] = 0
        file = self._files[table]
        file.write(",\n{\n" if self.counts[table] else "[\n{\n")
        file.write(text)
        file.write("\n}")
        self.counts[table] += 1

    def record(self, table: str, **fields: object) -> None:
        """Appends a record of a small table."""
        self.add(table, json.dumps(fields, indent=0)[2:-2])

    def write_shared(self) -> None:
        """Writes the tables that do not belong to a scene."""
        for name, token in self.categories.items():
            self.record("category", token=token, name=name, description="")
        for name, token in self.attributes.items():
            self.record("attribute", token=token, name=name, description="")
        for number, level in enumerate(VISIBILITY_LEVELS):
            self.record("visibility", token=str(number + 1), level=level, description="")
        for channel, token in self.sensors.items():
            kind = channel.split("_")[0].lower()
            modality = "camera" if kind == "cam" else kind
            self.record("sensor", token=token, channel=channel, modality=modality)

    def close(self) -> None:
        """Ends the tables."""
        for file in self._files.values():
            file.write("\n]")


class _Scene:
    """The records of a scene: an ego and objects that drive straight on."""

    def __init__(self, writer: _Writer, size: Size, number: int, name: str, frames: int) -> None:
        self._writer, self._size, self._name, self._frames = writer, size, name, frames
        self._rng = np.random.default_rng(number)
        self._start = _START + number * _SCENE_PERIOD
        self._token = writer.token()
        self._heading = float(self._rng.uniform(-3, 3))
        self._samples = [writer.token() for _ in range(frames)]

    def write(self) -> None:
        """Appends all records."""
        log = self._writer.token()
        self._writer.record(
            "log", token=log, logfile=self._name, vehicle="n015", date_captured="2018-07-24", location="none"
        )
        self._writer.record(
            "scene",
            token=self._token,
            log_token=log,
            nbr_samples=self._frames,
            first_sample_token=self._samples[0],
            last_sample_token=self._samples[-1],
            name=self._name,
            description="made up",
        )
        for frame, (token, before, after) in enumerate(_links(self._samples)):
            self._writer.record(
                "sample",
                token=token,
                timestamp=self._start + frame * _PERIOD,
                prev=before,
                next=after,
                scene_token=self._token,
            )
        self._write_sensors()
        self._write_objects()

    def _write_sensors(self) -> None:
        rig = {sensor.channel: sensor for sensor in make_rig(self._rng, self._size.image_size)}
        sensors = len(rig) + len(RADARS)
        sweeps = max(self._size.sample_data // self._size.samples - sensors, 0)
        for place, channel in enumerate((*rig, *RADARS)):
            sensor, calibration = rig.get(channel), self._writer.token()
            camera = sensor is not None and sensor.intrinsics is not None
            self._writer.record(
                "calibrated_sensor",
                token=calibration,
                sensor_token=self._writer.sensors[channel],
                translation=sensor.translation.tolist() if sensor else [3.4, 0.0, 0.5],
                rotation=sensor.rotation.tolist() if sensor else [1.0, 0.0, 0.0, 0.0],
                camera_intrinsic=sensor.intrinsics.tolist() if camera else [],
            )
            # A key frame, then the sweeps up to the next one.
            between = sweeps // sensors + (place < sweeps % sensors)
            delay = sensor.delay if sensor else 5_000
            self._write_stream(channel, calibration, camera, delay, between + 1)

    def _write_stream(self, channel: str, calibration: str, camera: bool, delay: int, each: int) -> None:
        """Writes the sample_data of a sensor, ``each`` per sample, of which the first is the key frame."""
        tokens = [self._writer.token() for _ in range(self._frames * each)]
        width, height = self._size.image_size if camera else (0, 0)
        kind, suffix = ("jpg", "jpg") if camera else ("pcd", "pcd.bin" if channel == "LIDAR_TOP" else "pcd")
        names = [
            [_filename(channel, folder, number, suffix) for number in range(_IMAGES)]
            for folder in ("samples", "sweeps")
        ]
        quaternion = json.dumps(euler_quaternion(self._heading).tolist(), indent=0)
        cos, sin = np.cos(self._heading), np.sin(self._heading)
        for place, (token, before, after) in enumerate(_links(tokens)):
            sample, sweep = divmod(place, each)
            offset = sample * _PERIOD + delay + sweep * _PERIOD // each
            way = 8e-6 * offset
            self._writer.add(
                "ego_pose",
                f'"token": "{token}",\n"timestamp": {self._start + offset},\n"rotation": {quaternion},\n'
                f'"translation": [\n{1000 + cos * way:.12f},\n{600 + sin * way:.12f},\n0.0\n]',
            )
            self._writer.add(
                "sample_data",
                f'"token": "{token}",\n"sample_token": "{self._samples[sample]}",\n'
                f'"ego_pose_token": "{token}",\n"calibrated_sensor_token": "{calibration}",\n'
                f'"timestamp": {self._start + offset},\n"fileformat": "{kind}",\n'
                f'"is_key_frame": {"false" if sweep else "true"},\n"height": {height},\n"width": {width},\n'
                f'"filename": "{names[sweep > 0][place % _IMAGES]}",\n'
                f'"prev": "{before}",\n"next": "{after}"',
            )

    def _write_objects(self) -> None:
        lifetime = min(self._size.lifetime, self._frames)
        left = round(self._size.annotations / self._size.samples * self._frames)
        for number in count():
            length = min(lifetime, left)
            if length == 0:
                return
            left -= length
            first = int(self._rng.integers(0, self._frames - length + 1))
            self._write_object(number, first, length)

    def _write_object(self, number: int, first: int, length: int) -> None:
        writer, rng = self._writer, self._rng
        kind = CLASSES[number % len(CLASSES)]
        tokens, instance = [writer.token() for _ in range(length)], writer.token()
        writer.record(
            "instance",
            token=instance,
            category_token=writer.categories[kind.category],
            nbr_annotations=length,
            first_annotation_token=tokens[0],
            last_annotation_token=tokens[-1],
        )
        prefix = {"pedestrian": "pedestrian.moving", "motorcycle": "cycle.with_rider"}.get(kind.name)
        attribute = prefix or ("vehicle.moving" if kind.category.startswith("vehicle.") else None)
        if kind.name == "bicycle":
            attribute = "cycle.without_rider"
        attributes = f'[\n"{writer.attributes[attribute]}"\n]' if attribute else "[]"
        x, y = rng.uniform((955, 555), (1045, 645)).tolist()
        speed, yaw = float(rng.uniform(0, 8)), float(rng.uniform(-3, 3))
        size = json.dumps([kind.size[1], kind.size[0], kind.size[2]], indent=0)
        quaternion = json.dumps(euler_quaternion(yaw).tolist(), indent=0)
        points = rng.integers(0, 60, length).tolist()
        for place, (token, before, after) in enumerate(_links(tokens)):
            way = speed * place * _PERIOD * 1e-6
            writer.add(
                "sample_annotation",
                f'"token": "{token}",\n"sample_token": "{self._samples[first + place]}",\n'
                f'"instance_token": "{instance}",\n"visibility_token": "{1 + place % 4}",\n'
                f'"attribute_tokens": {attributes},\n'
                f'"translation": [\n{x + way * np.cos(yaw):.3f},\n{y + way * np.sin(yaw):.3f},\n1.0\n],\n'
                f'"size": {size},\n"rotation": {quaternion},\n"prev": "{before}",\n"next": "{after}",\n'
                f'"num_lidar_pts": {points[place]},\n"num_radar_pts": {place % 3}',
            )


def _links(tokens: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yields tokens of a chain with those before and behind, "" at its ends."""
    return zip(tokens, ["", *tokens[:-1]], [*tokens[1:], ""], strict=True)
