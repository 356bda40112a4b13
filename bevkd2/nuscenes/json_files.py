"""The JSON files of a nuScenes-layout data set: reading one, and whether they changed."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

_ENCODING = "utf-8-sig"  # UTF-8; a byte-order mark is skipped
_LARGEST = 1e38  # about the largest of 32 bits, which models compute with
_SHOWN = 60  # characters of a value in a message
_BLOCK = 2**22  # characters that are read at once
_WHITESPACE = re.compile(r"[ \t\n\r]*")  # as the json module


def read_json(path: Path, remedy: str) -> Any:
    """Reads a file.

    Args:
        path: the file.
        remedy: what to do about a damaged one, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, not in UTF-8 (with or without a byte-order mark), or has a key twice in an
            object.
    """
    try:
        return json.loads(path.read_text(encoding=_ENCODING), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(_damaged(path, error, remedy)) from error


def _damaged(path: Path, what: object, remedy: str) -> str:
    with path.open("rb") as file:
        begin = file.read(2)
    if begin in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return (
            f"{path} is in UTF-16 (it begins with the bytes {begin.hex(' ')}), expected UTF-8; convert it "
            f"(iconv -f UTF-16 -t UTF-8), or {remedy}"
        )
    return (
        f"{path} is no valid JSON ({what}; {path.stat().st_size} bytes): it is cut off or damaged; {remedy}"
    )


def read_elements(path: Path, remedy: str) -> Iterator[Any]:
    """Yields the elements of a file that holds a list, without the whole file in memory.

    Args:
        path: the file.
        remedy: what to do about a damaged one, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: it is valid, but holds no list.
        ValueError: as ``read_json``, with the same message; elements before the damage are yielded first.
    """
    with path.open(encoding=_ENCODING) as file:
        try:
            yield from _Elements(file)
        except UnicodeDecodeError:
            read_json(path, remedy)  # raises it with the place in the whole file
            raise
        except _NotListError:
            read_json(path, remedy)
            raise TypeError(f"{path} holds no list") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(_damaged(path, error, remedy)) from error


class _NotListError(Exception):
    pass


class _Elements:
    """Decodes the elements of a list one by one, with the errors of the json module for the whole file."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text, self._at = "", 0  # what was read, and where the next element begins in it
        self._chars = self._lines = self._column = 0  # of what came before the text

    def __iter__(self) -> Iterator[Any]:
        decode = json.JSONDecoder(object_pairs_hook=_unique).raw_decode
        first = self._skip_whitespace(0)
        if self._text[first : first + 1] != "[":
            raise _NotListError
        self._at = first + 1
        bracket = self._skip_whitespace(self._at)
        if self._text[bracket : bracket + 1] == "]":
            return self._check_end(bracket + 1)
        yield from (records := self._records())
        opened, size = "[0," if records else "[", _BLOCK
        while True:
            text, value, follows, end = self._text, None, "", 0
            try:
                value, end = decode(text, _after_whitespace(text, self._at))
                end = _after_whitespace(text, end)
                follows = text[end : end + 1]
            except json.JSONDecodeError:
                pass  # the element is cut off, or damaged
            if follows == ",":
                yield value
                self._at, opened, size = end + 1, "[0,", _BLOCK
            elif follows == "]":
                yield value
                return self._check_end(end + 1)
            elif self._read(size):
                size *= 2  # the element goes on in the next block; if it is damaged, to the end of the file
                if records := self._records():
                    yield from records
                    opened, size = "[0,", _BLOCK
            else:
                self._fail(opened, self._at)

    def _records(self) -> list[Any]:
        """Decodes at once what was read of flat objects, and returns them; none where anything is unusual.

        One by one takes longer, mostly for the search of keys that are there twice. Here, each key needs a
        colon of its own: where there are as many colons as different keys, none is there twice.
        """
        end = self._text.rfind("},", self._at) + 1
        try:
            records = json.loads(f"[{self._text[self._at : end]}]")
        except (ValueError, RecursionError):
            return []  # a bracket inside of an element, or damage, which decoding one by one places
        if not all(type(record) is dict for record in records):
            return []
        if sum(map(len, records)) != self._text.count(":", self._at, end):
            return []
        self._at = end + 1 if records else self._at
        return list(records)

    def _read(self, size: int) -> bool:
        """Reads on, and forgets what was decoded; returns False at the end of the file."""
        done, more = self._text[: self._at], self._file.read(size)
        newline = done.rfind("\n")
        self._column = self._column + len(done) if newline < 0 else len(done) - newline - 1
        self._chars += len(done)
        self._lines += done.count("\n")
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)

    def _skip_whitespace(self, at: int) -> int:
        """Returns where something else than whitespace follows; the end of the text: nothing does."""
        while (at := _after_whitespace(self._text, at)) == len(self._text):
            more = self._file.read(_BLOCK)
            if not more:
                break
            self._text += more
        return at

    def _check_end(self, at: int) -> None:
        """Raises ValueError where something follows the list."""
        if self._skip_whitespace(at) < len(self._text):
            self._fail("[]", at)

    def _fail(self, before: str, at: int) -> None:
        """Raises what the json module finds in the rest of the text, with the place in the whole file.

        Args:
            before: what makes the rest a list again.
            at: where the rest begins.
        """
        try:
            json.loads(before + self._text[at:], object_pairs_hook=_unique)
        except json.JSONDecodeError as error:
            at += error.pos - len(before)
            newline = self._text.rfind("\n", 0, max(at, 0))  # Python 3.13: at the comma before the text
            column = self._column + at if newline < 0 else at - newline - 1
            line = self._lines + self._text.count("\n", 0, max(at, 0))
            place = f"line {line + 1} column {column + 1} (char {self._chars + at})"
            raise ValueError(f"{error.msg}: {place}") from None


def _after_whitespace(text: str, at: int) -> int:
    found = _WHITESPACE.match(text, at)
    assert found is not None  # it matches nothing, too
    return found.end()


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
    """Returns whether a value is a list of a number of finite numbers.

    Args:
        value: anything that JSON can hold.
        length: how many numbers it must have.
    """
    return isinstance(value, list) and len(value) == length and all(map(is_finite, value))


def file_states(folder: Path, pattern: str) -> list[list[Any]]:
    """Lists the state of the files of a folder, by which a change of one is seen.

    Args:
        folder: the folder, which may be absent.
        pattern: which files, as ``Path.glob`` reads it.

    Returns:
        [name, size in bytes, time of the last change in nanoseconds] of each file, in the order of
        the paths; empty where there are none.

    Raises:
        FileNotFoundError: one of them is a link to what does not exist.
    """
    paths = sorted(folder.glob(pattern))
    for path in paths:
        refuse_dangling(path)
    stats = [(path.name, path.stat()) for path in paths]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def refuse_dangling(path: Path) -> None:
    """Raises FileNotFoundError where a path is a link to what does not exist."""
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(
            f"{path} is a link to {path.readlink()}, which does not exist; mend or remove the link"
        )
