"""Reads the tensors of a PyTorch file that holds other Python objects besides, without making those.

A pickle is a program that calls functions by their names. Here no name is looked up: a fixed table says what
becomes a tensor or a plain container, and every other call makes an :class:`Ignored`.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

# Instructions that make numbers, strings and containers, or move them on the stack. Those that call, or that
# change what is there already, are written below; others (extension codes, out-of-band buffers) are refused.
_PLAIN_INSTRUCTIONS = """
    MARK STOP POP POP_MARK DUP GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE PROTO FRAME
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_LIST LIST EMPTY_DICT DICT EMPTY_SET FROZENSET GLOBAL STACK_GLOBAL BINPERSID
"""


class Ignored:
    """Stands for an object of a file that was not made.

    Attributes:
        name: of the class or function that the file names.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}, not read>"


def ignored_names(content: object) -> list[str]:
    """Returns the names of what was ignored anywhere in a content, sorted, each once.

    Args:
        content: what a checkpoint file held: nested mappings and sequences.
    """
    return sorted({item.name for item in _walk(content) if isinstance(item, Ignored)})


def holds_tensors(content: object) -> bool:
    """Returns whether there is a tensor anywhere in a content.

    Args:
        content: what a checkpoint file held: nested mappings and sequences.
    """
    return any(isinstance(item, Tensor) for item in _walk(content))


def read_tensors(path: Path) -> Any:
    """Returns the content of a file of ``torch.save``; nothing that the file names is looked up or called.

    Args:
        path: a file in torch's zip format.

    Returns:
        The content; :class:`Ignored` where it has other objects than tensors, numbers, strings and plain
        containers. Subclasses of containers are plain ones.

    Raises:
        pickle.UnpicklingError: an instruction that is not admitted.
        Exception: whatever Python and torch raise on a damaged file.
    """
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        folder = name.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist():
            order = archive.read(f"{folder}byteorder").decode()
            if order != sys.byteorder:
                raise ValueError(f"its numbers are {order}-endian, this machine's {sys.byteorder}-endian")
        data = archive.read(name)
        return _Unpickler(data, lambda key: archive.read(f"{folder}data/{key}")).load()


def _walk(content: object) -> Iterator[object]:
    """Yields a content and all that it contains, each object once, however deep or entangled it is."""
    seen: set[int] = set()
    left = [content]
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        if isinstance(item, dict):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset)):
            left += item


class _Storage(NamedTuple):
    numbers: bytearray
    dtype: torch.dtype


def _tensor(storage: _Storage, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    """Returns a view of a storage; torch checks that it lies in it."""
    dtype = next((value for value in rest if isinstance(value, torch.dtype)), storage.dtype)
    if not storage.numbers:
        return torch.empty(0, dtype=dtype).as_strided(size, stride, offset)
    return torch.frombuffer(storage.numbers, dtype=dtype).as_strided(size, stride, offset)


def _subclass(make: Any, _: Any, arguments: Any, *rest: Any) -> Any:
    return _call(make, tuple(arguments))


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes are encoded as {encoding!r}")
    return text.encode("latin1")


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": lambda sizes: torch.Size(sizes),
    "torch.device": lambda *place: torch.device(*place),
    "collections.OrderedDict": lambda items=(): dict(items),
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": lambda items=(): dict(items),
    "builtins.set": lambda items=(): set(items),
    "__builtin__.set": lambda items=(): set(items),
    "builtins.frozenset": lambda items=(): frozenset(items),
    "__builtin__.frozenset": lambda items=(): frozenset(items),
    "_codecs.encode": _latin1,
}
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ShortStorage": torch.int16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,
}


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    """Returns what a call makes: from the table, or an :class:`Ignored` of the function's name."""
    if not isinstance(function, Ignored):
        raise pickle.UnpicklingError(f"it calls a {type(function).__name__}")
    known = _CALLS.get(function.name)
    return Ignored(function.name) if known is None else known(*arguments)


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler, of whose instructions those that call or change objects are replaced."""

    # What the base class has, and its stubs leave out.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        code: pickle._Unpickler.dispatch[code]
        for code in (getattr(pickle, name)[0] for name in _PLAIN_INSTRUCTIONS.split())
    }

    def __init__(self, data: bytes, read_storage: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._read_storage = read_storage
        self._storages: dict[str, bytearray] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Returns a dtype, or a name that nothing is known of yet."""
        full = f"{module}.{name}"
        return _DTYPES.get(full, Ignored(full))

    def persistent_load(self, identity: Any) -> _Storage:
        """Returns a storage: ``("storage", type, key, device, number of elements)``."""
        _, kind, key, *_ = identity
        if key not in self._storages:
            self._storages[key] = bytearray(self._read_storage(key))
        return _Storage(self._storages[key], _STORAGES[kind.name])

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], arguments)

    def _new_object_with_keywords(self) -> None:
        keywords, arguments = self.stack.pop(), self.stack.pop()
        del keywords
        self.stack[-1] = _call(self.stack[-1], arguments)

    def _instance(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        arguments = tuple(self.pop_mark())
        self.append(_call(Ignored(f"{module}.{name}"), arguments))

    def _object(self) -> None:
        function, *arguments = self.pop_mark()
        self.append(_call(function, tuple(arguments)))

    def _bytes_of_an_array(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        data = self.read(size)
        if len(data) < size:
            raise EOFError(f"{size} bytes are announced, and {len(data)} are there")
        self.append(bytearray(data))

    def _build(self) -> None:
        self.stack.pop()  # attributes: no container or tensor that is made here has any

    def _add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update(items)
        elif not isinstance(target, Ignored):
            raise pickle.UnpicklingError(f"it appends to a {type(target).__name__}")

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is dict:
            target.update(zip(items[::2], items[1::2], strict=True))
        elif not isinstance(target, Ignored):
            raise pickle.UnpicklingError(f"it sets items of a {type(target).__name__}")

    def _append_one(self) -> None:
        self._add([self.stack.pop()])

    def _append_all(self) -> None:
        self._add(self.pop_mark())

    def _set_one(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _set_all(self) -> None:
        self._set(self.pop_mark())

    dispatch.update(
        {
            pickle.REDUCE[0]: _reduce,
            pickle.NEWOBJ[0]: _reduce,
            pickle.NEWOBJ_EX[0]: _new_object_with_keywords,
            pickle.INST[0]: _instance,
            pickle.OBJ[0]: _object,
            pickle.BUILD[0]: _build,
            pickle.BYTEARRAY8[0]: _bytes_of_an_array,  # Python's own allocates what is announced
            pickle.APPEND[0]: _append_one,
            pickle.APPENDS[0]: _append_all,
            pickle.ADDITEMS[0]: _append_all,
            pickle.SETITEM[0]: _set_one,
            pickle.SETITEMS[0]: _set_all,
        }
    )
