"""Weights and checkpoints on disk: read without running code from them, written whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from bevkd2.checkpoint.inert import holds_tensors, ignored_names, read_tensors
from bevkd2.config.shipped import refuse_address

_logger = logging.getLogger(__name__)

SUFFIXES = (".pth", ".safetensors")

# Stored beside the tensors of a bare state dict; in a .safetensors file, in its metadata.
_CLASSES = "classes"

_BEGIN = 512  # bytes of a file by which text is known
_LEAST_TEXT = 8  # bytes: fewer may be the begin of a file that was cut off
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_HTML = (b"<!doctype html", b"<html", b"<?xml", b"<head", b"<body")
_TEXT = frozenset(b"\t\n\r" + bytes(range(32, 127)))

# What torch.load(weights_only=True) reads back besides containers and tensors.
_PLAIN_TYPES = (str, bytes, bool, int, float, type(None), torch.dtype, torch.device, torch.Size)

# What torch's reader and unpickler raise on truncated or garbled files; found by fuzzing.
_DAMAGE = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class CheckpointFileError(ValueError):
    """A file that is not a checkpoint, is damaged, or holds more than tensors and plain values."""


def load_file(path: str | Path) -> dict[str, Any]:
    """Reads a ``.pth`` or ``.safetensors`` file to the CPU; nothing in the file is executed.

    Of a ``.pth`` file that holds other Python objects besides, such as the training history in those of
    mmengine, the tensors and plain values are read; the objects are not made, and a warning names them.

    Args:
        path: the file.

    Returns:
        Its content: a state dict, or a checkpoint with keys such as ``model`` and ``trainer``. Either may
        have ``classes`` besides: names in the order of the model's labels. An object that was not made is
        an :class:`bevkd2.checkpoint.inert.Ignored` in its place.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointFileError: another suffix, a damaged file, or one that holds Python objects and no tensor.
        ValueError: it is an address, not a path.
    """
    refuse_address(path, "a checkpoint")
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise CheckpointFileError(
            f"{path}: files ending in {path.suffix or 'no suffix'!r} are not read, since unpickling runs "
            f"code; expected {' or '.join(SUFFIXES)} (give it that name if torch.save wrote it). "
            f"{_conversion_help(path)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    _refuse_text(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
    if not isinstance(content, dict):
        raise CheckpointFileError(f"{path} holds a {type(content).__name__}, expected a dict of tensors")
    names = content.get(_CLASSES, [])
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise CheckpointFileError(
            f"{path}: what it has as {_CLASSES!r} is {str(names)[:40]!r}, expected a list of names, in the "
            "order of the labels; write the file again"
        )
    return content


def save_file(content: dict[str, Any], path: str | Path) -> None:
    """Writes a checkpoint atomically: after a crash there is the old file or the new one, never half of one.

    Args:
        content: what to write; for ``.safetensors`` a flat dict of tensors, and ``classes``, a list of names,
            where they are known. Numpy numbers become Python's.
        path: a ``.pth`` or ``.safetensors`` file; its folder must exist.

    Raises:
        CheckpointFileError: another suffix.
        OSError: it cannot be written, as where the disk is full.
        TypeError: a value that could not be read back safely; the message names its key.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        tensors = {name: value.detach().contiguous() for name, value in content.items() if name != _CLASSES}
        metadata = {_CLASSES: json.dumps(list(content[_CLASSES]))} if _CLASSES in content else None
        replace_atomically(path, lambda file: file.write(safetensors_bytes(tensors, metadata)))
    elif path.suffix == ".pth":
        plain = _plain(content, key="")
        replace_atomically(path, lambda file: _write_pth(plain, file))
    else:
        raise CheckpointFileError(f"{path}: a checkpoint's name must end in {' or '.join(SUFFIXES)}")


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Reads the model's weights from a checkpoint or a bare state dict.

    Args:
        path: a ``.pth`` or ``.safetensors`` file.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointFileError: it is damaged, unsafe, or holds no weights.
    """
    return model_state(load_file(path), path)


def model_state(content: dict[str, Any], source: str | Path) -> dict[str, Tensor]:
    """Returns the model's state dict in what :func:`load_file` read.

    Args:
        content: a checkpoint with the key ``model``, or a bare state dict.
        source: the file, for errors.

    Raises:
        CheckpointFileError: neither of the two.
    """
    bare = {name: value for name, value in content.items() if name != _CLASSES}
    state = content["model"] if isinstance(content.get("model"), dict) else bare
    strangers = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if strangers or not state:
        raise CheckpointFileError(
            f"{source} has no weights: expected tensors by name, or a key 'model' with them, found "
            f"{', '.join(strangers[:10]) or 'nothing'}. {_conversion_help(Path(source))}"
        )
    return state


def replace_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file beside ``path``, flushes it to the disk, and renames it to ``path``.

    Args:
        path: the file to make or replace.
        write: writes the content into the open binary file that it is given.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_directory(path.parent)


class _Reporting:
    """A binary file that keeps the error of a write."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _write_pth(content: dict[str, Any], file: BinaryIO) -> None:
    """Writes by torch.save, which raises a RuntimeError of its own where the disk is full."""
    reporting = _Reporting(file)
    try:
        torch.save(content, cast(BinaryIO, reporting))
    except RuntimeError as error:
        if reporting.error is None:
            raise
        raise reporting.error from error


def _flush_directory(directory: Path) -> None:
    """Makes a rename survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_text(path: Path) -> None:
    """Raises CheckpointFileError where a file is text: what it most often is, is named."""
    with path.open("rb") as file:
        begin = file.read(_BEGIN)
    if begin.startswith(_LFS_POINTER):
        what, remedy = "a pointer of git-lfs, not the weights themselves", "fetch them: git lfs pull"
    elif begin.lstrip().lower().startswith(_HTML):
        what, remedy = "a web page, not weights", "download the file again, by the link of the file itself"
    elif len(begin) >= _LEAST_TEXT and all(byte in _TEXT for byte in begin):
        what = f"a text, not weights: it begins with {begin[:40].decode('ascii')!r}"
        remedy = "copy or download it again"
    else:
        return
    raise CheckpointFileError(f"{path} ({path.stat().st_size} bytes) is {what}; {remedy}")


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            content: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            names = (file.metadata() or {}).get(_CLASSES)
    except (SafetensorError, RecursionError, *_DAMAGE) as error:
        raise CheckpointFileError(f"{path} is damaged or not a safetensors file: {error}") from error
    if names is None:
        return content
    try:
        return {**content, _CLASSES: json.loads(names)}
    except (ValueError, RecursionError) as error:
        raise CheckpointFileError(
            f"{path}: {_CLASSES!r} of its metadata is {names[:40]!r}, expected a list of names as JSON, such "
            'as ["Car", "Van"], in the order of the labels; write the file again'
        ) from error


def _read_pth(path: Path) -> Any:
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*pickle protocol")  # what cannot be read is read below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        return _read_foreign(path, error)
    except CheckpointFileError:
        raise
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.filename is not None:
            raise
        raise _damaged(path, error) from error  # zipfile went where there is nothing


def _check_archive(path: Path) -> None:
    """Checks that a zip file holds no more than its size, as torch writes it, and nothing that was changed.

    Raises:
        CheckpointFileError: it is TorchScript; it is compressed, and may unpack to any size; or a checksum
            is wrong, which torch's own reader does not look at.
        zipfile.BadZipFile: it is damaged.
    """
    if not zipfile.is_zipfile(path):
        return  # the format of before torch 1.6
    with zipfile.ZipFile(path) as archive:
        if any(name.split("/")[1:] == ["constants.pkl"] for name in archive.namelist()):
            raise CheckpointFileError(
                f"{path} is refused: it is a TorchScript program (torch.jit.save), and loading it would load "
                "code; save the state dict of the model that it was made of: torch.save(model.state_dict(), "
                f"{path.name!r})"
            )
        size = sum(entry.file_size for entry in archive.infolist())
        if size > path.stat().st_size:
            raise CheckpointFileError(
                f"{path} is refused: it is compressed, and would unpack from {path.stat().st_size} to {size} "
                f"bytes; torch.save writes checkpoints without compression"
            )
        if changed := archive.testzip():
            raise CheckpointFileError(
                f"{path} is damaged: the checksum of {changed} in it is wrong; copy or download it again "
                "(or, where torch.serialization.set_crc32_options(False) wrote it, save it again without)"
            )


def _read_foreign(path: Path, error: pickle.UnpicklingError) -> Any:
    """Returns the content of a file that torch refused with an error, its objects ignored and named."""
    if not zipfile.is_zipfile(path):
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise _damaged(path, error) from error
        raise _refused(path, found[1], "in the format of before torch 1.6") from error
    try:
        content = read_tensors(path)
    except (pickle.UnpicklingError, *_DAMAGE) as second:
        raise _damaged(path, second) from second
    names = ignored_names(content)
    if not holds_tensors(content):
        raise _refused(path, ", ".join(names[:10]) or "nothing", "and no tensors")
    if names:
        _logger.warning(
            "%s: read without its Python objects, since making those could run code from the file: %s",
            path,
            ", ".join(names),
        )
    return content


def _refused(path: Path, objects: str, how: str) -> CheckpointFileError:
    return CheckpointFileError(
        f"{path} is refused: it holds Python objects ({objects}) {how}, and making those could run code from "
        f"the file. {_conversion_help(path)}"
    )


def _damaged(path: Path, error: Exception) -> CheckpointFileError:
    return CheckpointFileError(
        f"{path} is damaged or not a PyTorch file ({type(error).__name__}: {_first_line(error)}); "
        f"copy or download it again"
    )


def _conversion_help(path: Path) -> str:
    target = path.with_suffix(".safetensors").name
    return (
        "If you trust its origin, convert it once where its code is installed: "
        f"safetensors.torch.save_file(state_dict_of_tensors, {target!r})"
    )


def _first_line(error: BaseException) -> str:
    """Returns the first line of a message, without the escape codes that torch colours it with.

    Of torch's unpickler it is what was found, without the advice to read the file by executing it.
    """
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"WeightsUnpickler error: (.+)", str(error))
        return found[1] if found else "it cannot be unpickled"
    return re.sub(r"\x1b\[\d*m", "", (str(error).splitlines() or ["no message"])[0])


def _plain(value: Any, key: str) -> Any:
    """Returns ``value`` with numpy's numbers as Python's; refuses what could not be read back safely."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, dict):
        return {name: _plain(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(_plain(item, f"{key}[{i}]") for i, item in enumerate(value))
    if isinstance(value, (Tensor, *_PLAIN_TYPES)):
        return value
    raise TypeError(
        f"checkpoint entry {key} is a {type(value).__qualname__}, which could not be read back safely; "
        f"state_dict() must return tensors, numbers, strings, lists and dicts"
    )
