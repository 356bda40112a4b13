"""nuScenes-layout datasets: from the tables to the index."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevkd2.d2 import log_first_n
from bevkd2.data.nuscenes.index import NuScenesIndex, cached_index
from bevkd2.nuscenes.layout import (
    ATTRIBUTE_NAMES,
    CLASS_NAMES,
    NO_ATTRIBUTE,
    check_version,
    is_below_root,
)
from bevkd2.nuscenes.record_checks import check_annotation, check_intrinsics, check_pose
from bevkd2.nuscenes.records import without_garbage_collection
from bevkd2.structures import CAMERA_NAMES, GlobalBoxes, from_global, invert_pose, pose_matrix

logger = logging.getLogger(__name__)

# The devkit, and so bevkd2.nuscenes.tables and ego_motion, are imported where an index is built: that takes
# seconds, and a run that finds its index in the cache does without.

Array = npt.NDArray[np.float64]
_LONGEST_STEP = 1.5  # seconds between annotations of which the devkit makes a velocity


def load_nuscenes(
    root: str | Path,
    version: str,
    split: str,
    cache_dir: str = "",
    cameras: Sequence[str] = CAMERA_NAMES,
) -> NuScenesIndex:
    """Loads the index of a split, from the cache where it is up to date.

    Args:
        root: the dataset's root.
        version: name of the tables.
        split: an official split or one of the version's ``splits.json``.
        cache_dir: where the index is kept, see ``cache_directory``.
        cameras: channels to read.

    Returns:
        The index.

    Raises:
        FileNotFoundError: root, version, a table or an image does not exist.
        ValueError: no such split; a table, box or time that cannot be; no camera, or one twice.
        DanglingTokenError: a table refers to a record that is not there.
    """
    if not cameras or len(set(cameras)) < len(cameras):
        raise ValueError(
            f"INPUT.CAMERAS is {list(cameras)}, expected one camera or more, each once, of "
            f"{', '.join(CAMERA_NAMES)}"
        )
    check_version(root, version)
    build = partial(build_index, root, version, split, tuple(cameras))
    index = cached_index(root, version, split, cameras, cache_dir, build)
    _say_motion_source(index)
    return index


def _say_motion_source(index: NuScenesIndex) -> None:
    """Logs, once per process and split, where the ego's motion comes from."""
    from_can_bus = index.from_can_bus[np.unique(index.scene_starts)]
    log_first_n(
        logging.INFO,
        f"ego motion of split {index.split!r} in {index.root}: from the CAN bus expansion for "
        f"{from_can_bus.sum()} scenes, from ego poses for {len(from_can_bus) - from_can_bus.sum()}",
        name=__name__,
        key="message",
    )


@without_garbage_collection()
def build_index(root: str | Path, version: str, split: str, cameras: tuple[str, ...]) -> NuScenesIndex:
    """Makes the index of a split from the tables; takes minutes for the whole of nuScenes.

    Args:
        root: the data set's root.
        version: name of the tables.
        split: an official split or one of the version's ``splits.json``.
        cameras: channels to read, in the index's order.

    Raises:
        FileNotFoundError: root, version, a table or an image does not exist.
        ValueError: no such split; a table, box or time that cannot be.
        DanglingTokenError: a table refers to a record that is not there.
    """
    from bevkd2.nuscenes.splits import scenes_of_split
    from bevkd2.nuscenes.tables import NuScenesTables

    started = time.perf_counter()
    logger.info("reading the tables of %s in %s (minutes for the whole of nuScenes)", version, root)
    tables = NuScenesTables(root, version)
    scene_names = set(scenes_of_split(tables, split))
    counts = Counter(sample["scene_token"] for sample in tables.sample)
    scenes = [_scene_samples(tables, scene, counts) for scene in tables.scene if scene["name"] in scene_names]
    scenes.sort(key=lambda samples: samples[0]["timestamp"])
    samples = [sample for scene in scenes for sample in scene]
    starts = np.cumsum([0] + [len(scene) for scene in scenes])
    arrays = _frame_arrays([_frame(tables, sample, cameras) for sample in samples])
    arrays.update(_annotation_arrays(tables, samples, arrays["lidar2global"]))
    index = NuScenesIndex(
        root=str(root),
        version=version,
        split=split,
        cameras=cameras,
        scene_starts=np.repeat(starts[:-1], np.diff(starts)),
        **_can_bus_arrays(tables, scenes),
        **arrays,
    )
    seconds = time.perf_counter() - started
    logger.info("indexed %d frames of %d scenes of %r in %.1f s", len(index), len(scenes), split, seconds)
    return index


def _scene_samples(tables: Any, scene: dict[str, Any], counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Returns the samples of a scene, followed from its first to its last; it has ``counts`` by its token."""
    samples = [tables.get("sample", scene["first_sample_token"])]
    if samples[0]["scene_token"] != scene["token"]:
        raise ValueError(
            f"scene {scene['name']!r} in {tables.table_root}/scene.json: its first_sample_token "
            f"{samples[0]['token']!r} is a sample of another scene (scene_token); the metadata are damaged, "
            "unpack them again"
        )
    while samples[-1]["next"]:
        last = samples[-1]
        sample = tables.get("sample", last["next"])
        if sample["timestamp"] <= last["timestamp"] or sample["scene_token"] != scene["token"]:
            raise ValueError(
                f"sample {sample['token']!r} is the next of sample {last['token']!r} in {tables.table_root}, "
                f"but it is not later (timestamp {sample['timestamp']}, {last['timestamp']} before) or not "
                f"in scene {scene['name']!r} (scene_token); expected one chain in order of time"
            )
        samples.append(sample)
    if samples[-1]["token"] != scene["last_sample_token"]:
        raise ValueError(
            f"scene {scene['name']!r} in {tables.table_root} ends with sample {samples[-1]['token']!r}, "
            f"which has no next, but its last_sample_token is {scene['last_sample_token']!r}; the metadata "
            "are damaged, unpack them again"
        )
    if len(samples) != counts[scene["token"]]:
        raise ValueError(
            f"scene {scene['name']!r} in {tables.table_root} has {counts[scene['token']]} records in "
            f"sample.json (scene_token), but the chain from its first_sample_token has {len(samples)}; the "
            "metadata are damaged, unpack them again"
        )
    return samples


def _key_frame(tables: Any, sample: dict[str, Any], channel: str) -> dict[str, Any]:
    """Returns the sample_data record of a channel's key frame."""
    if channel not in sample["data"]:
        raise ValueError(
            f"sample {sample['token']!r} of {tables.table_root} has no key frame of {channel}; it has "
            f"{', '.join(sorted(sample['data'])) or 'none'}. Mend sample_data.json, or the channel in "
            "sensor.json that its calibrated_sensor leads to, or set INPUT.CAMERAS"
        )
    row: dict[str, Any] = tables.get("sample_data", sample["data"][channel])
    return row


def _poses(tables: Any, record: dict[str, Any]) -> tuple[Array, Array, dict[str, Any]]:
    """sensor2ego and ego2global of a sample_data record, and its calibrated_sensor record."""
    calibration = tables.get("calibrated_sensor", record["calibrated_sensor_token"])
    ego = tables.get("ego_pose", record["ego_pose_token"])
    check_pose("calibrated_sensor", calibration, tables.table_root)
    check_pose("ego_pose", ego, tables.table_root)
    return (
        pose_matrix(calibration["translation"], calibration["rotation"]),
        pose_matrix(ego["translation"], ego["rotation"]),
        calibration,
    )


def _frame(tables: Any, sample: dict[str, Any], cameras: tuple[str, ...]) -> dict[str, Any]:
    """Returns one row of every per-frame array but the CAN bus."""
    lidar2ego, ego2global, _ = _poses(tables, _key_frame(tables, sample, "LIDAR_TOP"))
    lidar2global = ego2global @ lidar2ego
    row: dict[str, Any] = {
        "sample_tokens": sample["token"].encode(),
        "scene_tokens": sample["scene_token"].encode(),
        "timestamps": sample["timestamp"],
        "lidar2global": lidar2global,
        "ego2global": ego2global,
        "filenames": [],
        "image_sizes": [],
        "intrinsics": [],
        "cam2lidar": [],
    }
    for camera in cameras:
        record = _key_frame(tables, sample, camera)
        cam2ego, cam_ego2global, calibration = _poses(tables, record)
        check_intrinsics(calibration, camera)
        if not is_below_root(record["filename"]):
            raise ValueError(
                f"sample_data.json of {tables.dataroot}: the filename of {camera} of sample "
                f"{sample['token']!r} is {record['filename']!r}, expected a path below the root, as "
                "samples/CAM_FRONT/a.jpg; images of another place may be linked into the root"
            )
        if not _is_file(Path(tables.dataroot) / record["filename"]):
            raise FileNotFoundError(
                f"{Path(tables.dataroot) / record['filename']} does not exist ({camera} of sample "
                f"{sample['token']!r}, a filename in sample_data.json); unpack the images of the split again"
            )
        row["filenames"].append(record["filename"].encode())
        row["image_sizes"].append([record["height"], record["width"]])
        row["intrinsics"].append(calibration["camera_intrinsic"])
        row["cam2lidar"].append(invert_pose(lidar2global) @ cam_ego2global @ cam2ego)
    return row


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long
        return False


def _frame_arrays(rows: list[dict[str, Any]]) -> dict[str, npt.NDArray[Any]]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _annotation_arrays(
    tables: Any, samples: list[dict[str, Any]], lidar2global: Array
) -> dict[str, npt.NDArray[Any]]:
    """Returns the arrays of boxes, those of the ten classes, frame by frame."""
    from bevkd2.nuscenes.devkit import category_to_detection_name

    label_of = {name: i for i, name in enumerate(CLASS_NAMES)}
    names_of = {row["name"]: category_to_detection_name(row["name"]) for row in tables.category}
    names = ("labels", "num_lidar_pts", "num_radar_pts", "visibility", "attributes")
    boxes, rows, counts = [], [], [0]
    for sample, pose in zip(samples, lidar2global, strict=True):
        records = [tables.get("sample_annotation", token) for token in sample["anns"]]
        for record in records:
            check_annotation(record)
        records = [r for r in records if names_of[r["category_name"]] is not None]
        boxes.append(from_global(_global_boxes(tables, records), pose).tensor.numpy())
        values = [
            (
                label_of[names_of[r["category_name"]]],
                r["num_lidar_pts"],
                r["num_radar_pts"],
                _visibility(tables, r),
                _attribute(tables, r),
            )
            for r in records
        ]
        rows.append(np.array(values, dtype=np.int64).reshape(-1, len(names)))
        counts.append(len(records))
    columns = np.concatenate(rows)
    return {
        "boxes": np.concatenate(boxes),
        "box_starts": np.cumsum(counts),
        **{name: columns[:, i].copy() for i, name in enumerate(names)},
    }


def _visibility(tables: Any, annotation: dict[str, Any]) -> int:
    """Returns the nuScenes level 1 to 4, by the order of visibility.json; 0 where not annotated.

    Raises:
        ValueError: nuScenes' own token, which is the level, has another place there.
    """
    token = annotation["visibility_token"]
    level: int = tables.getind("visibility", token) + 1 if token else 0
    if token in ("1", "2", "3", "4") and int(token) != level:
        raise ValueError(
            f"{tables.table_root}/visibility.json: the record with the token {token!r} is number {level}, "
            f"expected number {token}: records are missing, or in another order; unpack the metadata again"
        )
    return level


def _attribute(tables: Any, annotation: dict[str, Any]) -> int:
    """Returns the label of the annotation's first attribute, or NO_ATTRIBUTE."""
    if not annotation["attribute_tokens"]:
        return NO_ATTRIBUTE
    record = tables.get("attribute", annotation["attribute_tokens"][0])
    if record["name"] not in ATTRIBUTE_NAMES:
        raise ValueError(
            f"attribute {record['token']!r} of sample_annotation {annotation['token']!r} is named "
            f"{record['name']!r}, expected one of {', '.join(ATTRIBUTE_NAMES)}; mend attribute.json"
        )
    return ATTRIBUTE_NAMES.index(record["name"])


def _global_boxes(tables: Any, records: list[dict[str, Any]]) -> GlobalBoxes:
    def column(values: list[Any], width: int) -> Array:
        return np.array(values, dtype=np.float64).reshape(-1, width)

    return GlobalBoxes(
        translation=column([record["translation"] for record in records], 3),
        size=column([record["size"] for record in records], 3),
        rotation=column([record["rotation"] for record in records], 4),
        velocity=column([_velocity(tables, record) for record in records], 2),
    )


def _velocity(tables: Any, annotation: dict[str, Any]) -> tuple[float, float]:
    """Returns vx, vy in m/s, as the devkit's ``box_velocity``, which takes several times as long.

    It is the difference of the annotations before and behind, or of this one and the only other, over the
    time between; NaN where there is none, or where they are more than ``_LONGEST_STEP`` apart per step.

    Raises:
        ValueError: the annotations before and behind are not of earlier and later samples.
    """
    chain = [tables.get("sample_annotation", annotation[way]) for way in ("prev", "next") if annotation[way]]
    chain.insert(1 if annotation["prev"] else 0, annotation)
    samples = [tables.get("sample", record["sample_token"]) for record in chain]
    times = [sample["timestamp"] for sample in samples]
    one_scene = len({sample["scene_token"] for sample in samples}) == 1
    if not one_scene or any(later <= earlier for earlier, later in itertools.pairwise(times)):
        raise ValueError(
            f"sample_annotation {annotation['token']!r}: prev is {annotation['prev']!r} and next "
            f"{annotation['next']!r}, expected annotations of an earlier and of a later sample of its scene "
            f"(timestamps are {times}; sample_token says of which sample one is); the metadata are damaged, "
            "unpack them again"
        )
    seconds = 1e-6 * times[-1] - 1e-6 * times[0]
    if len(chain) == 1 or seconds > _LONGEST_STEP * (len(chain) - 1):
        return math.nan, math.nan
    first, last = chain[0]["translation"], chain[-1]["translation"]
    return (last[0] - first[0]) / seconds, (last[1] - first[1]) / seconds


def _can_bus_arrays(tables: Any, scenes: list[list[dict[str, Any]]]) -> dict[str, npt.NDArray[Any]]:
    """Returns the can_bus vectors of all frames, and where their motion comes from."""
    from bevkd2.data.nuscenes.ego_motion import CanBus, can_bus_vectors, motion_from_poses

    can_bus, rows, sources = CanBus(tables.dataroot), [], []
    for samples in scenes:
        records = [_key_frame(tables, sample, "LIDAR_TOP") for sample in samples]
        poses = [tables.get("ego_pose", record["ego_pose_token"]) for record in records]
        translations = np.array([pose["translation"] for pose in poses])
        rotations = np.array([pose["rotation"] for pose in poses])
        timestamps = np.array([sample["timestamp"] for sample in samples])
        scene_name = tables.get("scene", samples[0]["scene_token"])["name"]
        from_can_bus = can_bus.has_scene(scene_name)
        if from_can_bus:
            motion = can_bus.motion(scene_name, timestamps)
        else:
            motion = motion_from_poses(translations, rotations, timestamps)
        rows.append(can_bus_vectors(translations, rotations, motion))
        sources += [from_can_bus] * len(samples)
    return {"can_bus": np.concatenate(rows), "from_can_bus": np.array(sources)}
