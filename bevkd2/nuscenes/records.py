"""Records of a large table, packed: a list of dicts takes a multiple of the memory."""

from __future__ import annotations

import gc
import marshal
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

_UNPACKED = 4096  # records that are kept unpacked: neighbours in time are asked for again and again
# Of marshal's format: later versions look for objects that are there twice, in a table of their own.
_VERSION = 2


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Reads records without looking for cycles among them, of which JSON has none: a quarter of the time.

    It is for processes that read and do nothing else: what other threads drop meanwhile is collected later.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class PackedRecords:
    """Records with the same fields, held as bytes. A record is unpacked where it is asked for.

    The bytes never leave the process, so that marshal's format need not be safe to read. What is changed in a
    record that was asked for is lost.
    """

    def __init__(self, fields: Iterable[str]) -> None:
        """Makes an empty list.

        Args:
            fields: what is kept of a record.
        """
        self._fields = tuple(fields)
        self._added: dict[str, Sequence[Any]] = {}
        self._bytes, self._ends = bytearray(), array("q", [0])
        self._unpacked: dict[int, dict[str, Any]] = {}
        self._nested: dict[int, dict[str, Any]] = {}  # records that marshal cannot hold

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a record that has the fields; others are left out.

        Args:
            record: of what JSON can hold.
        """
        kept = {field: record[field] for field in self._fields}
        try:
            self._bytes += marshal.dumps(list(kept.values()), _VERSION)
        except ValueError:  # lists in lists, thousands deep
            self._nested[len(self)] = kept
        self._ends.append(len(self._bytes))

    def add_field(self, name: str, values: Sequence[Any]) -> None:
        """Adds a field to all records.

        Args:
            name: of the field.
            values: of each record.
        """
        self._added[name] = values
        self._unpacked.clear()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._unpack, range(len(self)))

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns a record, by its place from 0."""
        record = self._unpacked.get(i)
        if record is None:
            if not 0 <= i < len(self):
                raise IndexError(f"record {i} of {len(self)}")
            if len(self._unpacked) >= _UNPACKED:
                self._unpacked.clear()
            record = self._unpacked[i] = self._unpack(i)
        return record

    def _unpack(self, i: int) -> dict[str, Any]:
        if i in self._nested:
            record = self._nested[i]
        else:
            values = marshal.loads(self._bytes[self._ends[i] : self._ends[i + 1]])
            record = dict(zip(self._fields, values, strict=True))
        for name, added in self._added.items():
            record[name] = added[i]
        return record
