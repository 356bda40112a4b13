"""A checksum at the end of an ONNX file, which has none of its own: a changed weight is still a valid weight.

The last bytes of a sealed file are one more entry of the metadata, as protobuf encodes it, whose value is the
SHA-256 of all bytes before. Every reader of ONNX files reads it as metadata.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

CHECKSUM_KEY = "bevkd2_sha256"
"""Entry of the file's metadata that holds the checksum."""

_DIGITS = 64
_METADATA_PROPS = 14 << 3 | 2  # field 14 of ModelProto, of the wire type LEN
_KEY, _VALUE = 1 << 3 | 2, 2 << 3 | 2  # fields of StringStringEntryProto
_ENTRY = bytes([_KEY, len(CHECKSUM_KEY)]) + CHECKSUM_KEY.encode() + bytes([_VALUE, _DIGITS])
_PREFIX = bytes([_METADATA_PROPS, len(_ENTRY) + _DIGITS]) + _ENTRY
_LENGTH = len(_PREFIX) + _DIGITS

_logger = logging.getLogger(__name__)


def seal(path: str | Path) -> None:
    """Appends a checksum to an ONNX file, or renews the one at its end.

    A file that another tool has changed, a quantiser for example, must be sealed again.

    Args:
        path: the file.

    Raises:
        OSError: the file cannot be read or written.
    """
    path = Path(path)
    length = path.stat().st_size - (_LENGTH if _tail(path).startswith(_PREFIX) else 0)
    digest = _digest(path, length)
    with path.open("r+b") as file:
        file.seek(length)
        file.write(_PREFIX + digest.encode())


def check(path: str | Path) -> None:
    """Compares a file with the checksum at its end; logs a warning where there is none.

    Args:
        path: a file that ``bevkd2 export`` wrote, or :func:`seal` has changed.

    Raises:
        ValueError: they differ.
        OSError: the file cannot be read.
    """
    path = Path(path)
    tail = _tail(path)
    if not tail.startswith(_PREFIX):
        _logger.warning(
            "%s has no checksum at its end, so that damage cannot be seen: it was not written by `bevkd2 "
            "export`, or another tool has written it again; bevkd2.runtime.seal(path) adds one",
            path,
        )
    elif _digest(path, path.stat().st_size - _LENGTH).encode() != tail[len(_PREFIX) :]:
        raise ValueError(
            f"{path} is damaged, or was changed after its export: its content does not match the checksum at "
            "its end; copy or export it again, or call bevkd2.runtime.seal(path) if you have changed it"
        )


def _tail(path: Path) -> bytes:
    """The last bytes, as many as a checksum takes."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LENGTH))
        return file.read()


def _digest(path: Path, length: int) -> str:
    """The SHA-256 of the first bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while length > 0 and (block := file.read(min(length, 2**20))):
            digest.update(block)
            length -= len(block)
    return digest.hexdigest()
