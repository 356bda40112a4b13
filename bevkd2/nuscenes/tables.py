"""nuScenes tables by nuscenes-devkit, with errors that name what is wrong in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bevkd2.nuscenes.devkit import NuScenes, create_splits_scenes
from bevkd2.nuscenes.json_files import is_vector, read_json
from bevkd2.nuscenes.layout import check_version

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

_NUMBER = (int, float)
# The fields that are read of each table, by bevkd2 and by the devkit for it, and their types.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "category": {"token": str, "name": str},
    "attribute": {"token": str, "name": str},
    "visibility": {"token": str},
    "instance": {"token": str, "category_token": str},
    "sensor": {"token": str, "channel": str, "modality": str},
    "calibrated_sensor": {
        "token": str,
        "sensor_token": str,
        "translation": list,
        "rotation": list,
        "camera_intrinsic": list,
    },
    "ego_pose": {"token": str, "translation": list, "rotation": list},
    "log": {"token": str},
    "scene": {"token": str, "name": str, "first_sample_token": str, "last_sample_token": str},
    "sample": {"token": str, "timestamp": _NUMBER, "scene_token": str, "next": str},
    "sample_data": {
        "token": str,
        "sample_token": str,
        "ego_pose_token": str,
        "calibrated_sensor_token": str,
        "is_key_frame": (bool, int),
        "height": int,
        "width": int,
        "filename": str,
    },
    "sample_annotation": {
        "token": str,
        "sample_token": str,
        "instance_token": str,
        "visibility_token": str,
        "attribute_tokens": list,
        "translation": list,
        "size": list,
        "rotation": list,
        "num_lidar_pts": int,
        "num_radar_pts": int,
        "prev": str,
        "next": str,
    },
}
_SPLITS_EXPECTED = 'expected {"name of the split": ["name of a scene", ...], ...}'


class DanglingTokenError(KeyError):
    """A table refers to a record that is not there."""

    def __str__(self) -> str:
        return str(self.args[0])


class NuScenesTables(NuScenes):
    """``nuscenes.NuScenes``, quiet, whose errors name the table, the record and the token.

    The devkit's maps, lidarseg and panoptic labels are not read: detection does without them.
    """

    def __init__(self, root: str | Path, version: str) -> None:
        """Reads all tables.

        Args:
            root: the dataset's root directory, which holds ``version`` and ``samples``.
            version: name of the directory with the tables.

        Raises:
            FileNotFoundError: the root, the version or a table does not exist.
            ValueError: a table is no JSON, or a record lacks a field or has one of another type.
            DanglingTokenError: a table refers to a record that another table lacks.
        """
        check_version(root, version)
        # Not the devkit's constructor, which fails without the images of the maps.
        self.version, self.dataroot, self.verbose = version, str(root), False
        self.table_names = [*_FIELDS, "map"]
        for name in _FIELDS:
            setattr(self, name, self.__load_table__(name))
        logs = [record["token"] for record in self.log]
        self.map = [{"token": "", "log_tokens": logs}]  # the devkit looks for the map of every log
        self.__make_reverse_index__(verbose=False)

    def __load_table__(self, table_name: str) -> list[dict[str, Any]]:
        path = Path(self.table_root) / f"{table_name}.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: version {self.version} of the dataset is incomplete; unpack its "
                "metadata again"
            )
        rows = read_json(path, "unpack the metadata again")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path} holds no list of records (JSON objects); unpack the metadata again")
        fields = list(_FIELDS[table_name].items())
        for row in rows:
            for field, kind in fields:
                if not isinstance(row.get(field), kind):
                    raise ValueError(_wrong_field(path, row, field, kind))
        return rows

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
                f"table {table_name}.json of {self.table_root} has no record with token {token!r}, to which "
                f"{self._referrer(token)} refers; the metadata are damaged or mixed from two versions, "
                "unpack them again"
            )
        return index

    def _referrer(self, token: str) -> str:
        """Names the first record that mentions a token."""
        for table_name in self.table_names:
            for record in getattr(self, table_name):
                for field, value in record.items():
                    if field != "token" and (value == token or (isinstance(value, list) and token in value)):
                        return f"{field} of record {record['token']!r} in table {table_name}.json"
        return "the caller"


def _wrong_field(path: Path, row: dict[str, Any], field: str, kind: type | tuple[type, ...]) -> str:
    name = "number" if isinstance(kind, tuple) else kind.__name__
    found = f"is {row[field]!r}, expected a {name}" if field in row else "is missing"
    return f"{path}, record {row.get('token')!r}: {field} {found}; unpack the metadata again"


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
            raise ValueError(f"{path}: split {name!r} is {members!r}, {_SPLITS_EXPECTED}")
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
            f"{', '.join(missing)}"
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
        "num_lidar_pts": (_is_count(annotation["num_lidar_pts"]), "a whole number"),
        "num_radar_pts": (_is_count(annotation["num_radar_pts"]), "a whole number"),
        "attribute_tokens": (
            isinstance(tokens, list) and len(tokens) < 2,
            "a list of one token or none: the official evaluation refuses more",
        ),
    }
    for field, (fits, what) in expected.items():
        if not fits:
            raise ValueError(
                f"sample_annotation {annotation['token']!r} (sample {annotation['sample_token']!r}): {field} "
                f"is {annotation[field]}, expected {what}; mend or remove the record"
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
                f"{table} {record['token']!r}: {field} is {record[field]}, expected finite numbers, of a "
                "rotation a quaternion of length 1; the metadata are damaged, unpack them again"
            )


def check_intrinsics(calibration: dict[str, Any], camera: str) -> None:
    """Checks that a record of calibrated_sensor is that of a camera.

    Args:
        calibration: the record.
        camera: the channel.

    Raises:
        ValueError: its intrinsics are not 3 x 3 finite numbers.
    """
    rows = calibration["camera_intrinsic"]
    if not (isinstance(rows, list) and len(rows) == 3 and all(is_vector(row, 3) for row in rows)):
        raise ValueError(
            f"calibrated_sensor {calibration['token']!r} of {camera}: camera_intrinsic is {rows}, expected "
            "3 x 3 finite numbers; mend the record, or set INPUT.CAMERAS to channels that are cameras"
        )


def _is_rotation(value: Any) -> bool:
    return is_vector(value, 4) and any(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0
