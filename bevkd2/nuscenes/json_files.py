"""The JSON files of a nuScenes-layout data set: reading one, and whether they changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LARGEST = 1e38  # about the largest of 32 bits, which models compute with


def read_json(path: Path, remedy: str) -> Any:
    """Reads a file.

    Args:
        path: the file.
        remedy: what to do about a damaged one, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or not in UTF-8.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(
            f"{path} is no valid JSON ({error}; {path.stat().st_size} bytes): it is cut off or damaged; "
            f"{remedy}"
        ) from error


def is_finite(value: Any) -> bool:
    """Returns whether a value is a finite number that 32 bits can hold."""
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST


def is_vector(value: Any, length: int) -> bool:
    """Returns whether a value is a list of that many finite numbers."""
    return isinstance(value, list) and len(value) == length and all(map(is_finite, value))


def file_states(folder: Path, pattern: str) -> list[list[Any]]:
    """Returns name, size and time of change of the files of a folder, which may be absent."""
    stats = [(path.name, path.stat()) for path in sorted(folder.glob(pattern))]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
