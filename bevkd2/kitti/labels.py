"""KITTI's label and detection text files: an object a row, 15 columns, and a 16th, the score, for detections.

The columns: type, truncated, occluded, alpha, x1 y1 x2 y2, height width length, x y z, rotation_y[, score].

How rows are read follows the official evaluation (``fscanf``), which does not look at line ends: names in any
case, numbers with an exponent, runs of blanks, blank lines, CRLF and empty files are fine. So is a byte-order
mark at the beginning. What it would silently misread (a missing or an extra column shifts all that follows)
or cannot compare (NaN) is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bevkd2.kitti.text import read_ascii

TYPES = (
    "Car",
    "Van",
    "Truck",
    "Pedestrian",
    "Person_sitting",
    "Cyclist",
    "Tram",
    "Misc",
    "DontCare",
)
"""What an object can be (KITTI's development kit, readme.txt)."""

COLUMNS = (
    *("type", "truncated", "occluded", "alpha", "x1", "y1", "x2", "y2"),
    *("height", "width", "length", "x", "y", "z", "rotation_y", "score"),
)
"""Names of the columns; labels have all but the last."""

_LABEL_COLUMNS = len(COLUMNS) - 1
_OCCLUDED = COLUMNS.index("occluded")
_LARGE = 2**31  # what an occlusion is limited to, so that it can be an integer
_LARGEST = 1e38  # about the largest of 32 bits, which models compute with
_SHOWN = 60  # characters of a word in a message
_CANONICAL = {name.lower().encode(): name for name in TYPES}
_TYPE_DTYPE = f"<U{max(map(len, TYPES))}"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class KittiObjects:
    """The n objects of one image, in the order of the file.

    Attributes:
        types: (n,) one of TYPES each, in that spelling.
        truncated: (n,) share outside of the image in [0, 1]; -1 where unknown.
        occluded: (n,) 0 fully visible, 1 partly, 2 largely occluded, 3 unknown; -1 where not given.
        alpha: (n,) observation angle, rotation_y - atan2(x, z), in radians; -10 where unknown.
        boxes2d: (n, 4) x1, y1, x2, y2 in pixels.
        sizes: (n, 3) height, width, length in metres; -1 where unknown.
        location: (n, 3) x, y, z of the bottom face's centre in the rectified camera's frame, metres; -1000
            where unknown.
        rotation_y: (n,) radians about the camera's y axis (down), 0 = length along +x; -10 where unknown.
        scores: (n,), higher is surer; None for labels.
    """

    types: npt.NDArray[np.str_]
    truncated: Floats
    occluded: npt.NDArray[np.int64]
    alpha: Floats
    boxes2d: Floats
    sizes: Floats
    location: Floats
    rotation_y: Floats
    scores: Floats | None = None

    def __len__(self) -> int:
        return len(self.types)

    def __getitem__(self, index: npt.NDArray[np.bool_] | npt.NDArray[np.int64] | slice) -> KittiObjects:
        """Some of the objects: by a mask, by indices, or by a slice."""
        return KittiObjects(
            self.types[index],
            self.truncated[index],
            self.occluded[index],
            self.alpha[index],
            self.boxes2d[index],
            self.sizes[index],
            self.location[index],
            self.rotation_y[index],
            None if self.scores is None else self.scores[index],
        )


def read_labels(path: str | Path) -> KittiObjects:
    """Reads a ground truth file.

    Args:
        path: a file of label_2, 15 columns.

    Returns:
        Its objects, DontCare regions included, without scores.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row has another number of columns, an unknown type, something that is not a finite
            number, or an occlusion that is not an integer; names file and line.
    """
    return _read(Path(path), _LABEL_COLUMNS)


def read_detections(path: str | Path) -> KittiObjects:
    """Reads a detection file.

    Args:
        path: a file of 16 columns. truncated and occluded are not looked at by the evaluation; an occlusion
            that is not an integer is rounded towards zero.

    Returns:
        Its objects, with scores.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row has another number of columns, an unknown type, or something that is not a finite
            number (a score that is NaN); names file and line.
    """
    return _read(Path(path), len(COLUMNS))


def write_labels(path: str | Path, objects: KittiObjects) -> None:
    """Writes a ground truth file.

    Args:
        path: the file; its folder must exist.
        objects: without scores, or their scores are left out. Numbers are written with 6 decimals.

    Raises:
        ValueError: an unknown type or a number that is not finite.
    """
    _write(Path(path), objects, with_scores=False)


def write_detections(path: str | Path, objects: KittiObjects) -> None:
    """Writes a detection file; without objects an empty one, which says that the image was processed.

    Args:
        path: the file; its folder must exist.
        objects: with scores. Numbers are written with 6 decimals, scores with 9 significant digits (which
            tell any two float32 apart).

    Raises:
        ValueError: no scores, an unknown type or a number that is not finite.
    """
    if objects.scores is None:
        raise ValueError(f"{path}: the objects have no scores; a detection file needs one each")
    _write(Path(path), objects, with_scores=True)


def _read(path: Path, columns: int) -> KittiObjects:
    content = read_ascii(path)
    types: list[str] = []
    tokens: list[bytes] = []
    for number, line in enumerate(content.splitlines(), start=1):
        row = line.split()
        if not row:
            continue
        if len(row) != columns:
            raise ValueError(_wrong_columns(path, number, row, columns))
        name = _CANONICAL.get(row[0].lower())
        if name is None:
            raise ValueError(
                f"{path}, line {number}: unknown type {_text(row[0])!r}; expected one of {', '.join(TYPES)} "
                "(in any case); rename it, or leave the row out"
            )
        types.append(name)
        tokens += row[1:]
    values = _numbers(path, content, tokens).reshape(len(types), columns - 1)
    if columns == _LABEL_COLUMNS:
        _check_occlusions(path, content, tokens)
    return KittiObjects(
        types=np.array(types, dtype=_TYPE_DTYPE),
        truncated=values[:, 0],
        occluded=values[:, 1].clip(-_LARGE, _LARGE).astype(np.int64),
        alpha=values[:, 2],
        boxes2d=values[:, 3:7],
        sizes=values[:, 7:10],
        location=values[:, 10:13],
        rotation_y=values[:, 13],
        scores=values[:, 14] if columns > _LABEL_COLUMNS else None,
    )


def _numbers(path: Path, content: bytes, tokens: list[bytes]) -> Floats:
    """Returns all numbers of a file; only if one is wrong are they looked at one by one."""
    try:
        values = np.array(list(map(float, tokens)), dtype=np.float64)
    except ValueError:
        raise ValueError(_wrong_number(path, content)) from None
    # Python's float reads 1_0 as 10. An underscore is fine in a type only, and the whole file is searched
    # first because that is quicker.
    underscore = b"_" in content and any(b"_" in token for token in tokens)
    if underscore or not (np.abs(values) < _LARGEST).all():
        raise ValueError(_wrong_number(path, content))
    return values


def _check_occlusions(path: Path, content: bytes, tokens: list[bytes]) -> None:
    step = _LABEL_COLUMNS - 1
    try:
        for token in tokens[_OCCLUDED - 1 :: step]:
            int(token)
    except ValueError:
        number, row = next(
            (number, row)
            for number, row in enumerate(map(bytes.split, content.splitlines()), start=1)
            if row and not row[_OCCLUDED].lstrip(b"+-").isdigit()
        )
        raise ValueError(
            f"{path}, line {number}: occluded is {_text(row[_OCCLUDED])!r}; expected an integer (0 to 3, or "
            "-1): the official evaluation reads it as one and would misread the rest of the row"
        ) from None


def _wrong_columns(path: Path, number: int, row: list[bytes], columns: int) -> str:
    kind, other = ("a label", "a detection") if columns == _LABEL_COLUMNS else ("a detection", "a label")
    if len(row) == 2 * len(COLUMNS) - 1 - columns:
        remedy = f"this is {other} row; are the folders of ground truth and detections swapped?"
    else:
        remedy = "complete the row"
    return (
        f"{path}, line {number}: {len(row)} columns; {kind} row has {columns} "
        f"({', '.join(COLUMNS[:columns])}); {remedy}"
    )


def _wrong_number(path: Path, content: bytes) -> str:
    """Names the first value that is no finite number. There is one."""
    for number, line in enumerate(content.splitlines(), start=1):
        for column, token in zip(COLUMNS[1:], line.split()[1:], strict=False):
            if not is_number(token):
                return (
                    f"{path}, line {number}: {column} is {_text(token)!r}; expected a finite number; correct "
                    "the value, or leave the row out"
                )
    raise AssertionError(f"{path}: every value is a number")


def is_number(word: bytes) -> bool:
    """Returns whether a word of a file is a finite number that 32 bits can hold, as C writes it."""
    try:
        return word.isascii() and b"_" not in word and abs(float(word)) < _LARGEST
    except ValueError:
        return False


def _text(token: bytes) -> str:
    text = token.decode("utf-8", "replace")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _write(path: Path, objects: KittiObjects, *, with_scores: bool) -> None:
    unknown = set(objects.types.tolist()) - set(TYPES)
    if unknown:
        raise ValueError(f"{path}: unknown type {sorted(unknown)[0]!r}; expected one of {', '.join(TYPES)}")
    values = np.column_stack(
        [objects.alpha, objects.boxes2d, objects.sizes, objects.location, objects.rotation_y]
    )
    scores = objects.scores if with_scores and objects.scores is not None else np.zeros(len(objects))
    finite = np.isfinite(values).all() and np.isfinite(objects.truncated).all() and np.isfinite(scores).all()
    if not finite:
        raise ValueError(
            f"{path}: an object has a value that is NaN or infinite; a model that predicts them has diverged"
        )
    rows = []
    for k, row in enumerate(values):
        numbers = " ".join(f"{value:.6f}" for value in row)
        score = f" {scores[k]:.9g}" if with_scores else ""
        head = f"{objects.types[k]} {objects.truncated[k]:.6g} {objects.occluded[k]}"
        rows.append(f"{head} {numbers}{score}\n")
    path.write_text("".join(rows))
