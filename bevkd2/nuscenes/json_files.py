"""The JSON files of a nuScenes-layout data set: reading one, and whether they changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LARGEST = 1e38  # about the largest of 32 bits, which models compute with
_SHOWN = 60  # characters of a value in a message


def read_json(path: Path, remedy: str) -> Any:
    """Reads a file.

    Args:
        path: the file.
        remedy: what to do about a damaged one, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, not in UTF-8, or has a key twice in an object.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(
            f"{path} is no valid JSON ({error}; {path.stat().st_size} bytes): it is cut off or damaged; "
            f"{remedy}"
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object of a JSON file, of which Python would keep the last of two equal keys."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {shortened(twice)} twice")
    return found


def shortened(value: Any) -> str:
    """Returns a value for a message: what cannot be printed is escaped, and what is long is cut off."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


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
