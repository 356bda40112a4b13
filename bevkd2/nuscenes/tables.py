"""nuScenes tables by nuscenes-devkit, with errors that name what is wrong in them."""

from __future__ import annotations

import logging
import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from bevkd2.nuscenes.devkit import NuScenes, create_splits_scenes
from bevkd2.nuscenes.json_files import is_vector, read_elements, read_json, shortened
from bevkd2.nuscenes.layout import check_version
from bevkd2.nuscenes.records import PackedRecords

logger = logging.getLogger(__name__)

# The devkit scores an official split only with a version that ends like this
# (nuscenes.eval.common.loaders.load_gt).
_OFFICIAL_VERSION_SUFFIX = {
    "train": "trainval",
    "val": "trainval",
    "train_detect": "trainval",
    "train_track": "trainval",
    "mini_train": "mini",
    "mini_val": "mini",
    "test": "test",
}

_UNREADABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, halves of pairs
_Test = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return type(value) is str and (value.isprintable() or not _UNREADABLE.search(value))


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and -(2**53) < value < 2**53


def is_count(value: Any) -> bool:
    """Returns whether a value is a whole number from 0 that 32 bits can hold."""
    return type(value) is int and 0 <= value < 2**31


def _is_flag(value: Any) -> bool:
    return type(value) in (bool, int)


def _is_list(value: Any) -> bool:
    return type(value) is list


_EXPECTED: dict[_Test, str] = {
    _is_text: "text",
    _is_time: "a number of microseconds",
    is_count: "a whole number",
    _is_flag: "true or false",
    _is_list: "a list",
}
# The fields that are read of each table, by bevkd2 and by the devkit for it, and what they must be.
_FIELDS: dict[str, dict[str, _Test]] = {
    "category": {"token": _is_text, "name": _is_text},
    "attribute": {"token": _is_text, "name": _is_text},
    "visibility": {"token": _is_text},
    "instance": {"token": _is_text, "category_token": _is_text},
    "sensor": {"token": _is_text, "channel": _is_text, "modality": _is_text},
    "calibrated_sensor": {
        "token": _is_text,
        "sensor_token": _is_text,
        "translation": _is_list,
        "rotation": _is_list,
        "camera_intrinsic": _is_list,
    },
    "ego_pose": {"token": _is_text, "translation": _is_list, "rotation": _is_list},
    "log": {"token": _is_text},
    "scene": {
        "token": _is_text,
        "name": _is_text,
        "first_sample_token": _is_text,
        "last_sample_token": _is_text,
    },
    "sample": {"token": _is_text, "timestamp": _is_time, "scene_token": _is_text, "next": _is_text},
    "sample_data": {
        "token": _is_text,
        "sample_token": _is_text,
        "ego_pose_token": _is_text,
        "calibrated_sensor_token": _is_text,
        "is_key_frame": _is_flag,
        "height": is_count,
        "width": is_count,
        "filename": _is_text,
    },
    "sample_annotation": {
        "token": _is_text,
        "sample_token": _is_text,
        "instance_token": _is_text,
        "visibility_token": _is_text,
        "attribute_tokens": _is_list,
        "translation": _is_list,
        "size": _is_list,
        "rotation": _is_list,
        "num_lidar_pts": is_count,
        "num_radar_pts": is_count,
        "prev": _is_text,
        "next": _is_text,
    },
}
_LARGE = ("sample_data", "ego_pose", "sample_annotation")
_SPLITS_EXPECTED = 'expected {"name of the split": ["name of a scene", ...], ...}'


class DanglingTokenError(KeyError):
    """A table refers to a record that is not there."""

    def __str__(self) -> str:
        return str(self.args[0])


class NuScenesTables(NuScenes):
    """``nuscenes.NuScenes``, quiet, whose errors name the table, the record and the token.

    The devkit's maps, lidarseg and panoptic labels are not read: detection does without them. The large
    tables are read record by record, and packed: their records have the fields of ``_FIELDS`` alone. Of
    sample_data and ego_pose, those of sweeps are checked and left out.
    """

    def __init__(self, root: str | Path, version: str, split: str = "") -> None:
        """Reads all tables.

        Args:
            root: the dataset's root directory, which holds ``version`` and ``samples``.
            version: name of the directory with the tables.
            split: leaves sensors' data and annotations of the scenes of other splits out; "": none.

        Raises:
            FileNotFoundError: the root, the version or a table does not exist.
            ValueError: a table is no JSON, or a record lacks a field or has one of another type; no such
                split.
            DanglingTokenError: a table refers to a record that another table lacks.
        """
        check_version(root, version)
        # Not the devkit's constructor, which fails without the images of the maps.
        self.version, self.dataroot, self.verbose = version, str(root), False
        self.table_names = [*_FIELDS, "map"]
        self._token2ind: dict[str, dict[str, int]] = {}
        for name in _FIELDS:
            if name not in _LARGE:
                setattr(self, name, list(self._records(name)))
        others = self._samples_outside(split) if split else set()
        self.sample_data = self._key_frames(others)
        poses = {row["ego_pose_token"] for row in self.sample_data}
        self.ego_pose = self._packed("ego_pose", lambda row: row["token"] in poses)
        self.sample_annotation = self._annotations(others)
        logs = [record["token"] for record in self.log]
        self.map = [{"token": "", "log_tokens": logs}]  # the devkit looks for the map of every log
        self.__make_reverse_index__(verbose=False)
        self._warn_of_lost_annotations()

    def _samples_outside(self, split: str) -> set[str]:
        """Returns the tokens of the samples of scenes that are not of a split."""
        names = set(scenes_of_split(self, split))
        scenes = {scene["token"] for scene in self.scene if scene["name"] not in names}
        return {sample["token"] for sample in self.sample if sample["scene_token"] in scenes}

    def _key_frames(self, others: set[str]) -> PackedRecords:
        """Reads sample_data.

        Sweeps stay where their calibration is not seen before, so that each calibration is looked for.
        """
        calibrations: set[str] = set()

        def wanted(row: dict[str, Any]) -> bool:
            known = row["calibrated_sensor_token"] in calibrations
            calibrations.add(row["calibrated_sensor_token"])
            return not known or (row["is_key_frame"] and row["sample_token"] not in others)

        return self._packed("sample_data", wanted)

    def _annotations(self, others: set[str]) -> PackedRecords:
        """Reads sample_annotation."""
        self._annotation_counts: Counter[str] = Counter()  # by instance, those of all samples
        # Of each that is kept: what the reverse index is made of. One text for all that have the same token.
        self._annotation_samples: list[str] = []
        self._annotation_instances: list[str] = []
        texts = {row["token"]: row["token"] for table in (self.sample, self.instance) for row in table}

        def wanted(row: dict[str, Any]) -> bool:
            sample, instance = row["sample_token"], row["instance_token"]
            self._annotation_counts[instance] += 1
            if sample in others:
                return False
            self._annotation_samples.append(texts.get(sample, sample))
            self._annotation_instances.append(texts.get(instance, instance))
            return True

        return self._packed("sample_annotation", wanted)

    def _packed(self, table_name: str, wanted: Callable[[dict[str, Any]], bool]) -> PackedRecords:
        """Reads a table, of which records that are not wanted are checked and left out."""
        packed = PackedRecords(_FIELDS[table_name])
        places = self._token2ind[table_name] = {}
        for row in self._records(table_name):
            if wanted(row):
                places[row["token"]] = len(packed)
                packed.append(row)
        return packed

    def _warn_of_lost_annotations(self) -> None:
        """Warns where sample_annotation has fewer records than instance, which counts them, says, or more."""
        counts = self._annotation_counts
        stated = {row["token"]: row["nbr_annotations"] for row in self.instance if "nbr_annotations" in row}
        if wrong := [token for token, count in stated.items() if counts[token] != count]:
            logger.warning(
                "%s/sample_annotation.json has %d records of instance %s, whose nbr_annotations is %s%s: "
                "objects are missing or there twice; unpack the metadata again",
                self.table_root,
                counts[wrong[0]],
                shortened(wrong[0]),
                shortened(stated[wrong[0]]),
                f", and others of {len(wrong) - 1} more instances" if len(wrong) > 1 else "",
            )

    def _records(self, table_name: str) -> Iterator[dict[str, Any]]:
        """Yields the records of a table up to the first that is wrong.

        Raises:
            FileNotFoundError: there is no such table.
            ValueError: it is no JSON, no list of records, or a record is wrong; whichever of these comes
                first, as it is found when the whole file is read.
        """
        path = Path(self.table_root) / f"{table_name}.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: version {self.version} of the dataset is incomplete; unpack its "
                "metadata again"
            )
        fields = list(_FIELDS[table_name].items())
        has_texts = _texts_test([field for field, fits in fields if fits is _is_text])
        others = [(field, fits) for field, fits in fields if fits is not _is_text]
        hashes, wrong, records = array("q"), "", True
        for row in self._elements(path):
            if not isinstance(row, dict):
                records = False
            if wrong or not records:
                continue  # to the end of the file, which may be no JSON
            if has_texts(row) and all(fits(row.get(field)) for field, fits in others):
                hashes.append(hash(row["token"]))
                yield row
            else:
                field, fits = next((field, fits) for field, fits in fields if not fits(row.get(field)))
                wrong = _wrong_field(path, row, field, fits)
        if not records:
            raise ValueError(_no_records(path))
        twice = _first_twice(self._elements(path), hashes)
        if twice is not None:
            wrong = (
                f"{path} has two records with the token {shortened(twice)}, of which one would be "
                "ignored; unpack the metadata again"
            )
        if wrong:
            raise ValueError(wrong)

    def _elements(self, path: Path) -> Iterator[Any]:
        try:
            yield from read_elements(path, "unpack the metadata again")
        except TypeError:
            raise ValueError(_no_records(path)) from None

    def __make_reverse_index__(self, verbose: bool) -> None:
        """Adds to records what the devkit adds: what they refer to, and what refers to them.

        Raises:
            DanglingTokenError: a record refers to one that is not there.
        """
        small = (name for name in self.table_names if name not in _LARGE)  # those of others are made already
        for name in small:
            self._token2ind[name] = {row["token"]: i for i, row in enumerate(getattr(self, name))}
        categories = [self._category(instance) for instance in self._annotation_instances]
        self.sample_annotation.add_field("category_name", categories)
        sensors = [self._sensor(row) for row in self.sample_data]
        self.sample_data.add_field("sensor_modality", [sensor["modality"] for sensor in sensors])
        self.sample_data.add_field("channel", [sensor["channel"] for sensor in sensors])
        for sample in self.sample:
            sample["data"], sample["anns"] = {}, []
        for token, i in self._token2ind["sample_data"].items():
            row = self.sample_data[i]
            if row["is_key_frame"]:
                self.get("sample", row["sample_token"])["data"][row["channel"]] = token
        tokens = self._token2ind["sample_annotation"]
        for token, sample_token in zip(tokens, self._annotation_samples, strict=True):
            self.get("sample", sample_token)["anns"].append(token)
        for log in self.log:
            log["map_token"] = self.map[0]["token"]

    def _category(self, instance_token: str) -> str:
        instance = self.get("instance", instance_token)
        name: str = self.get("category", instance["category_token"])["name"]
        return name

    def _sensor(self, data: dict[str, Any]) -> dict[str, Any]:
        calibration = self.get("calibrated_sensor", data["calibrated_sensor_token"])
        sensor: dict[str, Any] = self.get("sensor", calibration["sensor_token"])
        return sensor

    def get(self, table_name: str, token: str) -> dict[str, Any]:
        """Returns a record by its token; errors as ``getind``."""
        record: dict[str, Any] = getattr(self, table_name)[self.getind(table_name, token)]
        return record

    def getind(self, table_name: str, token: str) -> int:
        """Returns the index of a record in its table.

        Args:
            table_name: the table.
            token: the record's token.

        Returns:
            The index.

        Raises:
            DanglingTokenError: the table has no such record; names the records that refer to it.
        """
        index: int | None = self._token2ind[table_name].get(token)
        if index is None:
            raise DanglingTokenError(
                f"table {table_name}.json of {self.table_root} has no record with token {shortened(token)}, "
                f"to which {self._referrer(token)} refers; the metadata are damaged or mixed from two "
                "versions, unpack them again"
            )
        return index

    def _referrer(self, token: str) -> str:
        """Names the first record that mentions a token."""
        for table_name in self.table_names:
            for record in getattr(self, table_name):
                for field, value in record.items():
                    if field != "token" and (value == token or (isinstance(value, list) and token in value)):
                        return f"{field} of record {shortened(record['token'])} in table {table_name}.json"
        return "the caller"


def _texts_test(fields: list[str]) -> Callable[[dict[str, Any]], bool]:
    """Returns a function that says whether fields of a record are text; it has no call per field."""
    texts = itemgetter("token", *fields)  # a tuple, of one field too

    def has_texts(row: dict[str, Any]) -> bool:
        try:
            printable = "".join(texts(row)).isprintable()
        except (KeyError, TypeError):
            return False
        return printable or all(_is_text(row[field]) for field in fields)

    return has_texts


def _no_records(path: Path) -> str:
    return f"{path} holds no list of records (JSON objects); unpack the metadata again"


def _first_twice(rows: Iterable[dict[str, Any]], hashes: array[int]) -> str | None:
    """Returns the token of the first record that an earlier record has, too; a set of tokens would be large.

    Args:
        rows: the records; they are read only where hashes are equal.
        hashes: of the tokens of those that are looked at, the first ones.
    """
    values, counts = np.unique(np.array(hashes), return_counts=True)
    doubtful = set(values[counts > 1].tolist())
    seen: set[str] = set()
    for row, number in zip(rows if doubtful else (), hashes, strict=False):
        if number in doubtful:
            if row["token"] in seen:
                return str(row["token"])
            seen.add(row["token"])
    return None


def _wrong_field(path: Path, row: dict[str, Any], field: str, fits: _Test) -> str:
    found = f"is {shortened(row[field])}, expected {_EXPECTED[fits]}" if field in row else "is missing"
    return f"{path}, record {shortened(row.get('token'))}: {field} {found}; unpack the metadata again"


def custom_splits(root: str | Path, version: str) -> dict[str, list[str]]:
    """Returns the splits of a version's ``splits.json``, name to scene names; empty without the file.

    Raises:
        ValueError: the file is no JSON, or not an object of lists of names.
    """
    path = Path(root) / version / "splits.json"
    if not path.is_file():
        return {}
    splits = read_json(path, f"mend it, {_SPLITS_EXPECTED}")
    if not isinstance(splits, dict):
        raise ValueError(f"{path} holds a {type(splits).__name__}, {_SPLITS_EXPECTED}")
    for name, members in splits.items():
        if not isinstance(members, list) or not all(isinstance(scene, str) for scene in members):
            raise ValueError(f"{path}: split {shortened(name)} is {shortened(members)}, {_SPLITS_EXPECTED}")
    return splits


def available_splits(nusc: NuScenes) -> dict[str, list[str]]:
    """Splits of which a dataset has scenes, and that the devkit can score.

    Args:
        nusc: the tables.

    Returns:
        Split name to the names of its scenes that are in the tables. An official name always means the
        official split, as in the devkit, whatever ``splits.json`` says.
    """
    scenes = {scene["name"] for scene in nusc.scene}
    official = {
        name: [scene for scene in members if scene in scenes]
        for name, members in create_splits_scenes().items()
        if nusc.version.endswith(_OFFICIAL_VERSION_SUFFIX[name])
    }
    custom = {
        name: members
        for name, members in custom_splits(nusc.dataroot, nusc.version).items()
        if name not in _OFFICIAL_VERSION_SUFFIX
    }
    return {name: members for name, members in {**official, **custom}.items() if members}


def scenes_of_split(nusc: NuScenes, split: str) -> list[str]:
    """Returns the names of a split's scenes.

    Args:
        nusc: the tables.
        split: an official split, or one of the version's ``splits.json``.

    Returns:
        Scene names, all of them in the tables.

    Raises:
        ValueError: no such split here, or it names scenes that are not in the tables.
    """
    splits = available_splits(nusc)
    if split not in splits:
        hint = ""
        if split in _OFFICIAL_VERSION_SUFFIX:
            hint = (
                f" ({split!r} is an official nuScenes split, of versions that end in "
                f"{_OFFICIAL_VERSION_SUFFIX[split]!r}; a split of your own needs another name in splits.json)"
            )
        raise ValueError(
            f"version {nusc.version} in {nusc.dataroot} has no split {split!r}{hint}; splits there: "
            f"{', '.join(sorted(splits)) or 'none'}. Set DATASETS.TRAIN and DATASETS.TEST"
        )
    missing = sorted(set(splits[split]) - {scene["name"] for scene in nusc.scene})
    if missing:
        raise ValueError(
            f"split {split!r} of {nusc.table_root}/splits.json names scenes that scene.json lacks: "
            f"{shortened(missing)}"
        )
    return splits[split]


def check_annotation(annotation: dict[str, Any]) -> None:
    """Checks the values of a record of sample_annotation.

    Args:
        annotation: the record.

    Raises:
        ValueError: a number is not finite, a size not positive, a number of points not whole, or there are
            several attributes; names the token and the field.
    """
    tokens = annotation["attribute_tokens"]
    expected = {
        "translation": (is_vector(annotation["translation"], 3), "three finite numbers"),
        "size": (
            is_vector(annotation["size"], 3) and min(annotation["size"]) > 0,
            "positive width, length and height in metres",
        ),
        "rotation": (_is_rotation(annotation["rotation"]), "a quaternion of length 1"),
        "num_lidar_pts": (is_count(annotation["num_lidar_pts"]), "a whole number"),
        "num_radar_pts": (is_count(annotation["num_radar_pts"]), "a whole number"),
        "attribute_tokens": (
            isinstance(tokens, list) and len(tokens) < 2,
            "a list of one token or none: the official evaluation refuses more",
        ),
    }
    for field, (fits, what) in expected.items():
        if not fits:
            raise ValueError(
                f"sample_annotation {annotation['token']!r} (sample {annotation['sample_token']!r}): {field} "
                f"is {shortened(annotation[field])}, expected {what}; mend or remove the record"
            )


def check_pose(table: str, record: dict[str, Any]) -> None:
    """Checks the numbers of a record of ego_pose or calibrated_sensor.

    Args:
        table: name of the table.
        record: the record.

    Raises:
        ValueError: a number is not finite or the quaternion of length zero; names table, token and field.
    """
    fits = {"translation": is_vector(record["translation"], 3), "rotation": _is_rotation(record["rotation"])}
    for field, fit in fits.items():
        if not fit:
            raise ValueError(
                f"{table} {record['token']!r}: {field} is {shortened(record[field])}, expected "
                "finite numbers, of a rotation a quaternion of length 1; the metadata are damaged, unpack "
                "them again"
            )


def check_intrinsics(calibration: dict[str, Any], camera: str) -> None:
    """Checks that a record of calibrated_sensor is that of a camera.

    Args:
        calibration: the record.
        camera: the channel.

    Raises:
        ValueError: its intrinsics are not 3 x 3 finite numbers of a pinhole camera.
    """
    rows = calibration["camera_intrinsic"]
    numbers = isinstance(rows, list) and len(rows) == 3 and all(is_vector(row, 3) for row in rows)
    if not (numbers and rows[0][0] > 0 and rows[1][1] > 0 and rows[2] == [0, 0, 1]):
        raise ValueError(
            f"calibrated_sensor {calibration['token']!r} of {camera}: camera_intrinsic is {shortened(rows)}, "
            "expected 3 x 3 finite numbers, focal lengths above 0 and a third row 0 0 1; mend the record, or "
            "set INPUT.CAMERAS to channels that are cameras"
        )


def _is_rotation(value: Any) -> bool:
    return is_vector(value, 4) and math.hypot(*value) > 1e-6
