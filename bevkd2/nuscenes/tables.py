"""nuScenes tables by nuscenes-devkit, with errors that name what is wrong in them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bevkd2.nuscenes.devkit import NuScenes, create_splits_scenes
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


class DanglingTokenError(KeyError):
    """A table refers to a record that is not there."""

    def __str__(self) -> str:
        return str(self.args[0])


class NuScenesTables(NuScenes):
    """``nuscenes.NuScenes``, quiet, whose errors name the table, the record and the token."""

    def __init__(self, root: str | Path, version: str) -> None:
        """Reads all tables.

        Args:
            root: the dataset's root directory, which holds ``version`` and ``samples``.
            version: name of the directory with the tables.

        Raises:
            FileNotFoundError: the root, the version or a table does not exist.
            ValueError: a table is no JSON.
            DanglingTokenError: a table refers to a record that another table lacks.
        """
        check_version(root, version)
        try:
            super().__init__(version=version, dataroot=str(root), verbose=False)
        except DanglingTokenError:
            raise
        except KeyError as error:
            # What the devkit looks up by itself: the map of every log, and the fields of every record.
            raise DanglingTokenError(
                f"{self.table_root}: {error.args[0]!r} is missing: it is a log that log_tokens of no record "
                "in map.json lists, or a field that records of a table lack; the metadata are damaged, "
                "unpack them again"
            ) from error

    def __load_table__(self, table_name: str) -> list[dict[str, Any]]:
        path = Path(self.table_root) / f"{table_name}.json"
        try:
            rows: list[dict[str, Any]] = json.loads(path.read_text())
            return rows
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path} does not exist: version {self.version} of the dataset is incomplete; unpack its "
                "metadata again"
            ) from error
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} is no valid JSON ({error}); it is cut off or damaged, unpack it again"
            ) from error

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


def custom_splits(root: str | Path, version: str) -> dict[str, list[str]]:
    """Returns the splits of a version's ``splits.json``, name to scene names; empty without the file."""
    path = Path(root) / version / "splits.json"
    return json.loads(path.read_text()) if path.is_file() else {}


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
    """Checks the numbers of a record of sample_annotation.

    Args:
        annotation: the record.

    Raises:
        ValueError: a number is not finite or a size not positive; names the token and the field.
    """
    for field in ("translation", "size", "rotation"):
        if not all(math.isfinite(value) for value in annotation[field]):
            raise ValueError(
                f"sample_annotation {annotation['token']!r} (sample {annotation['sample_token']!r}): "
                f"{field} is {annotation[field]}, expected finite numbers; mend or remove the record"
            )
    if not any(annotation["rotation"]):
        raise ValueError(
            f"sample_annotation {annotation['token']!r} (sample {annotation['sample_token']!r}): rotation is "
            f"{annotation['rotation']}, expected a quaternion of length 1; mend or remove the record"
        )
    if min(annotation["size"]) <= 0:
        raise ValueError(
            f"sample_annotation {annotation['token']!r} (sample {annotation['sample_token']!r}): size is "
            f"{annotation['size']}, expected positive width, length and height in metres"
        )


def check_pose(table: str, record: dict[str, Any]) -> None:
    """Checks the numbers of a record of ego_pose or calibrated_sensor.

    Args:
        table: name of the table.
        record: the record.

    Raises:
        ValueError: a number is not finite or the quaternion of length zero; names table, token and field.
    """
    for field in ("translation", "rotation"):
        finite = all(math.isfinite(value) for value in record[field])
        if not finite or (field == "rotation" and not any(record[field])):
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
    if [len(row) for row in rows] != [3, 3, 3] or not all(math.isfinite(v) for row in rows for v in row):
        raise ValueError(
            f"calibrated_sensor {calibration['token']!r} of {camera}: camera_intrinsic is {rows}, expected "
            "3 x 3 finite numbers; mend the record, or set INPUT.CAMERAS to channels that are cameras"
        )
