"""What the fields of nuScenes' records must be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

from bevkd2.nuscenes.json_files import is_vector, shortened

LENGTH_TOLERANCE = 0.01
"""By how much the length of a quaternion may differ from 1: that of one rounded to two decimals."""

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
FIELDS: dict[str, dict[str, _Test]] = {
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
"""The fields that are read of each table, by bevkd2 and by the devkit for it, and what they must be."""


def record_test(table_name: str) -> Callable[[dict[str, Any]], bool]:
    """Returns a function that says whether a record has what ``FIELDS`` asks for.

    It is called for millions of records, so texts are tested together.

    Args:
        table_name: the table.
    """
    fields = FIELDS[table_name]
    names = [field for field, fits in fields.items() if fits is _is_text]
    texts = itemgetter("token", *names)  # a tuple, of one field too
    others = [(field, fits) for field, fits in fields.items() if fits is not _is_text]

    def fits(row: dict[str, Any]) -> bool:
        try:
            printable = "".join(texts(row)).isprintable()
        except (KeyError, TypeError):
            return False
        if not (printable or all(_is_text(row[name]) for name in names)):
            return False
        return all(test(row.get(field)) for field, test in others)

    return fits


def wrong_field(table_name: str, row: dict[str, Any]) -> str:
    """Describes the first field of a record that is not what ``FIELDS`` asks for.

    Args:
        table_name: the table.
        row: a record that does not pass :func:`record_test`.
    """
    field, fits = next(
        (field, fits) for field, fits in FIELDS[table_name].items() if not fits(row.get(field))
    )
    found = f"is {shortened(row[field])}, expected {_EXPECTED[fits]}" if field in row else "is missing"
    return f"record {shortened(row.get('token'))}: {field} {found}"


def check_annotation(annotation: dict[str, Any]) -> None:
    """Checks the values of a record of sample_annotation.

    Args:
        annotation: the record.

    Raises:
        ValueError: a number is not finite, a size not positive, a rotation no quaternion of length 1, a
            number of points not whole, or there are several attributes; names the token and the field.
    """
    tokens = annotation["attribute_tokens"]
    expected = {
        "translation": (is_vector(annotation["translation"], 3), "three finite numbers"),
        "size": (
            is_vector(annotation["size"], 3) and min(annotation["size"]) > 0,
            "positive width, length and height in metres",
        ),
        "rotation": (is_rotation(annotation["rotation"]), "a quaternion w, x, y, z of length 1"),
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


def check_pose(table: str, record: dict[str, Any], folder: str | Path) -> None:
    """Checks the numbers of a record of ego_pose or calibrated_sensor.

    Args:
        table: name of the table.
        record: the record.
        folder: of the tables, for the error.

    Raises:
        ValueError: a number is not finite, or the length of the quaternion not 1 (``LENGTH_TOLERANCE``);
            names file, token and field.
    """
    expected = {
        "translation": (is_vector(record["translation"], 3), "three finite numbers"),
        "rotation": (is_rotation(record["rotation"]), "a quaternion w, x, y, z of length 1"),
    }
    for field, (fits, what) in expected.items():
        if not fits:
            raise ValueError(
                f"{folder}/{table}.json, {table} {record['token']!r}: {field} is {shortened(record[field])}, "
                f"expected {what}; the metadata are damaged, unpack them again"
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


def is_rotation(value: Any) -> bool:
    """Returns whether a value is a quaternion of length 1, but for ``LENGTH_TOLERANCE``."""
    return is_vector(value, 4) and abs(math.hypot(*value) - 1) <= LENGTH_TOLERANCE
