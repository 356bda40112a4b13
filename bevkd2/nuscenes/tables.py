"""nuScenes tables by nuscenes-devkit, with errors that name what is wrong in them."""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bevkd2.nuscenes.devkit import NuScenes
from bevkd2.nuscenes.json_files import read_elements, shortened
from bevkd2.nuscenes.layout import check_version
from bevkd2.nuscenes.record_checks import FIELDS, record_test, wrong_field
from bevkd2.nuscenes.records import PackedRecords, without_garbage_collection
from bevkd2.nuscenes.splits import scenes_of_split

logger = logging.getLogger(__name__)

_LARGE = ("sample_data", "ego_pose", "sample_annotation")


class DanglingTokenError(KeyError):
    """A table refers to a record that is not there."""

    def __str__(self) -> str:
        return str(self.args[0])


class NuScenesTables(NuScenes):
    """``nuscenes.NuScenes``, quiet, whose errors name the table, the record and the token.

    The devkit's maps, lidarseg and panoptic labels are not read: detection does without them. The large
    tables are read record by record, and packed: their records have the fields of ``FIELDS`` alone. Of
    sample_data and ego_pose, those of sweeps are checked and left out.
    """

    @without_garbage_collection()
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
        self.table_names = [*FIELDS, "map"]
        self._token2ind: dict[str, dict[str, int]] = {}
        for name in FIELDS:
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
        packed = PackedRecords(FIELDS[table_name])
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
        fits = record_test(table_name)
        hashes, wrong, records = array("q"), "", True
        for row in self._elements(path):
            if not isinstance(row, dict):
                records = False
            if wrong or not records:
                continue  # to the end of the file, which may be no JSON
            if fits(row):
                hashes.append(hash(row["token"]))
                yield row
            else:
                wrong = f"{path}, {wrong_field(table_name, row)}; unpack the metadata again"
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
        """Returns a record.

        Args:
            table_name: the table, such as "sample".
            token: the record's token.

        Raises:
            DanglingTokenError: the table has no such record; names the records that refer to it.
        """
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
