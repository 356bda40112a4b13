"""What a frozen teacher says of each training sample, kept on disk (``DISTILL.TEACHER.CACHE``)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of_bytes
from safetensors.torch import save as bytes_of_tensors
from torch import Tensor, nn

from bevkd2.checkpoint.io import replace_atomically
from bevkd2.modeling.knowledge import Knowledge

Sample = Mapping[str, Any]
Run = Callable[[Sequence[Sample]], Knowledge]

_SUFFIX = ".safetensors.z"
# Of a sample, what a teacher does not see: annotations, and where the data set lies.
_UNSEEN = frozenset({"boxes", "labels", "boxes2d", "attributes", "file_name"})
_LARGE, _STRIDE = 2**16, 8  # of larger images, every 8th pixel of every 8th row tells two of them apart
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_LARGEST = 2**30  # bytes of a sample's file, uncompressed; more where the wanted fields are large themselves
_LONGEST_HEADER = 10**8  # bytes, of the safetensors format
_logger = logging.getLogger(__name__)


class TeacherCache:
    """Keeps a teacher's knowledge sample by sample, so that its forward pass runs once per sample.

    A file is found by a digest of what the teacher is given: geometry and tokens in full, and of large images
    every 8th pixel in both directions. A sample that differs in these has a file of its own; a change of a
    few pixels alone may not be seen. Files lie in a folder that is named by a digest of the teacher, so that
    another teacher, or other weights, may use the same ``DISTILL.TEACHER.CACHE``.

    Which axis of a tensor counts the samples is learnt in the first step, from the teacher's knowledge of one
    sample and of the same sample twice; what does not grow, such as strides, is taken from there. The first
    batch is always run, and compared with what is stored of it. What is returned is always what is stored, so
    that a step does not depend on whether its samples were there before.

    Args:
        folder: of all teachers; made where it is absent.
        identity: of the teacher, see :func:`teacher_identity`.
        dtype: in which floating-point tensors are stored. In float32 the losses are those of a teacher that
            ran on the batches in which its samples came first, bit by bit.
    """

    def __init__(self, folder: Path, identity: str, dtype: torch.dtype = torch.float32) -> None:
        self.num_samples = 0  # of the training set, for the estimate of the size; 0: not known
        self._folder = folder / identity
        self._dtype = dtype
        self._template: Knowledge | None = None
        self._layout: dict[str, _Layout] = {}
        self._digests: dict[str, str] = {}

    def knowledge(
        self, samples: Sequence[Sample], wants: frozenset[str], run: Run, device: torch.device
    ) -> Knowledge:
        """Returns the teacher's knowledge of a batch, from the disk where all of its samples are there.

        Args:
            samples: as the teacher gets them.
            wants: fields to fill, the same in every call.
            run: the teacher's forward pass, which fills them.
            device: of the tensors.

        Raises:
            ValueError: a sample differs from the one of the same name before, images differ in size, a file
                is damaged or not of this teacher, numbers are too large for the dtype of the files, or there
                is too little space on the disk.
        """
        names = [self._digest(sample) for sample in samples]
        begin = self._template is None
        template = self._template = self._template or self._learn(samples[0], wants, run)
        stored = [self._read(name) for name in names]
        if not begin and all(self._layout.keys() <= found.keys() for found in stored):
            return self._join(template, stored, device)
        knowledge = run(samples)
        rows = self._split(knowledge, wants, len(samples))
        if begin:
            for name, found, row in zip(names, stored, rows, strict=True):
                self._compare(self._path(name), found, row)
            self._check_space(rows[0], all(self._layout.keys() <= found.keys() for found in stored))
        kept = [{**row, **found} for row, found in zip(rows, stored, strict=True)]
        for name, found, row in zip(names, stored, kept, strict=True):
            if not row.keys() <= found.keys():
                self._write(name, row)
        return self._join(template, kept, device)

    def _digest(self, sample: Sample) -> str:
        """Returns the name of a sample's file."""
        digest = hashlib.blake2b(digest_size=16)
        _update(digest, {key: value for key, value in sample.items() if key not in _UNSEEN}, "sample")
        name, sample_id = digest.hexdigest(), str(sample.get("sample_id", ""))
        if sample_id and self._digests.setdefault(sample_id, name) != name:
            raise ValueError(
                f"DISTILL.TEACHER.CACHE: sample {sample_id!r} differs from what it was before, so an "
                "augmentation changes its pixels or its geometry; switch that off, or leave "
                "DISTILL.TEACHER.CACHE empty"
            )
        return name

    def _learn(self, sample: Sample, wants: frozenset[str], run: Run) -> Knowledge:
        """Learns the layout of the fields, and returns the knowledge of a sample."""
        one, two = run([sample]), run([sample, sample])
        grown = dict(_leaves(two, wants))
        for path, tensor in _leaves(one, wants):
            axes = [i for i in range(tensor.ndim) if tensor.shape[i] != grown[path].shape[i]]
            if axes:
                self._layout[path] = _Layout(axes[0], tuple(tensor.shape), tensor.dtype)
        template = type(one)(**{name: getattr(one, name) for name in wants})
        emptied: Knowledge = _replaced(template, {path: torch.empty(0) for path in self._layout})
        return emptied

    def _split(self, knowledge: Knowledge, wants: frozenset[str], count: int) -> list[dict[str, Tensor]]:
        """Returns the tensors of each sample by path, on the CPU and in the dtype of the files."""
        rows: list[dict[str, Tensor]] = [{} for _ in range(count)]
        for path, tensor in _leaves(knowledge, wants):
            layout = self._layout.get(path)
            if layout is None:
                continue
            for row, part in zip(rows, tensor.detach().cpu().chunk(count, layout.axis), strict=True):
                self._check_shape(path, part, layout)
                # A copy: safetensors refuses tensors that share memory, as fields of a knowledge may.
                copied = part.to(self._dtype if part.is_floating_point() else part.dtype, copy=True)
                if part.isfinite().all() and not copied.isfinite().all():
                    raise ValueError(
                        f"DISTILL.TEACHER.CACHE_DTYPE: {self._dtype} does not hold {path}, whose largest "
                        f"number is {part.abs().max():.3g}; set it to float32"
                    )
                row[path] = copied.contiguous()
        return rows

    def _join(
        self, template: Knowledge, stored: Sequence[Mapping[str, Tensor]], device: torch.device
    ) -> Knowledge:
        """Returns the knowledge of a batch from the files of its samples."""
        joined = {}
        for path, layout in self._layout.items():
            whole = torch.cat([row[path] for row in stored], layout.axis)
            joined[path] = whole.to(device, layout.dtype, non_blocking=True)
        knowledge: Knowledge = _replaced(template, joined)
        return knowledge

    def _check_shape(self, path: str, part: Tensor, layout: _Layout) -> None:
        if tuple(part.shape) != layout.shape:
            raise ValueError(
                f"DISTILL.TEACHER.CACHE: {path} of one sample is {tuple(part.shape)}, of another one "
                f"{layout.shape}; images differ in size, so that the teacher's outputs depend on the batch: "
                "bring them to one size, or leave DISTILL.TEACHER.CACHE empty; if they do not, a file is "
                "damaged: remove it"
            )

    def _compare(self, path: Path, stored: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
        for name in sorted(stored.keys() & live.keys()):
            found, expected = stored[name].double(), live[name].double()
            finite = expected[expected.isfinite()]
            bound = _TOLERANCE[self._dtype] * float(finite.abs().max()) if finite.numel() else 0.0
            same = found.shape == expected.shape
            if not same or not torch.allclose(found, expected, rtol=0, atol=bound, equal_nan=True):
                raise ValueError(
                    f"DISTILL.TEACHER.CACHE: {path} differs from the teacher's outputs now ({name}); another "
                    f"version of the code wrote it: remove {self._folder}"
                )

    def _check_space(self, row: Mapping[str, Tensor], filled: bool) -> None:
        """Makes the folder, and logs how large it becomes where the number of samples is known.

        Args:
            row: of one sample.
            filled: the first batch is there; else files are assumed to be those of other samples or fields.

        Raises:
            ValueError: larger than what is free on the disk.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self.num_samples:
            return
        plain, size = sum(tensor.nbytes for tensor in row.values()), len(_compressed(row))
        there = sum(1 for _ in self._folder.glob(f"*{_SUFFIX}")) if filled else 0
        missing, free = max(self.num_samples - there, 0) * size, shutil.disk_usage(self._folder).free
        _logger.info(
            "cache of the teacher, %s: %d of %d samples are there; %.2f MiB per sample (%.2f MiB "
            "uncompressed), %.2f GiB to be written, %.1f GiB free",
            self._folder,
            there,
            self.num_samples,
            size / 2**20,
            plain / 2**20,
            missing / 2**30,
            free / 2**30,
        )
        if missing > free:
            raise ValueError(
                f"DISTILL.TEACHER.CACHE {self._folder}: {missing / 2**30:.1f} GiB are to be written, but "
                f"{free / 2**30:.1f} GiB are free; name a folder on another disk, set "
                "DISTILL.TEACHER.CACHE_DTYPE: float16, or leave DISTILL.TEACHER.CACHE empty"
            )

    def _path(self, name: str) -> Path:
        return self._folder / (name + _SUFFIX)

    def _read(self, name: str) -> dict[str, Tensor]:
        """Returns the stored tensors of a sample by path; none where there is no file."""
        path = self._path(name)
        wanted = sum(math.prod(layout.shape) * layout.dtype.itemsize for layout in self._layout.values())
        try:
            found = tensors_of_bytes(_uncompressed(path.read_bytes(), max(_LARGEST, 8 * wanted)))
        except FileNotFoundError:
            return {}
        except (zlib.error, SafetensorError, _DamagedError) as error:
            raise ValueError(
                f"DISTILL.TEACHER.CACHE: {path} is damaged ({error}); remove it, and it is made anew"
            ) from error
        for field in self._layout.keys() & found.keys():
            layout, tensor = self._layout[field], found[field]
            dtype = self._dtype if layout.dtype.is_floating_point else layout.dtype
            if tensor.dtype != dtype:
                raise ValueError(
                    f"DISTILL.TEACHER.CACHE: {path}: {field} is {tensor.dtype}, expected {dtype}; the "
                    "file is damaged: remove it, and it is made anew"
                )
            self._check_shape(f"{path}: {field}", tensor, layout)
        return found

    def _write(self, name: str, row: Mapping[str, Tensor]) -> None:
        replace_atomically(self._path(name), lambda file: file.write(_compressed(row)))


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How the samples of a batch lie in a tensor."""

    axis: int
    """The axis that grows with the number of samples."""
    shape: tuple[int, ...]
    """Of one sample's part."""
    dtype: torch.dtype
    """Of the teacher's tensor."""


def teacher_identity(teacher: nn.Module, settings: str) -> str:
    """Returns a digest of a teacher.

    Args:
        teacher: its weights loaded.
        settings: what else decides what it says: config, autocast type, version of the code.
    """
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    _update(digest, dict(teacher.state_dict()), "teacher")
    return digest.hexdigest()


def _update(digest: hashlib.blake2b, value: Any, name: str) -> None:
    """Adds a value of a sample to a digest, with its type and shape.

    Raises:
        TypeError: a type whose content is not known; it is named.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        if value.dtype == np.uint8 and value.size > _LARGE:
            value = value[..., ::_STRIDE, ::_STRIDE]
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value):
            digest.update(repr(key).encode())
            _update(digest, value[key], f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)}".encode())
        for i, item in enumerate(value):
            _update(digest, item, f"{name}[{i}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _update(digest, getattr(value, field.name), f"{name}.{field.name}")
    elif value is None or isinstance(value, bool | int | float | str | bytes | np.generic):
        digest.update(repr(value).encode())
    else:
        raise TypeError(
            f"DISTILL.TEACHER.CACHE: {name} is a {type(value).__name__}, whose content cannot be compared; "
            "let the mapper give tensors, numbers, strings, dataclasses or containers of these, or leave "
            "DISTILL.TEACHER.CACHE empty"
        )


def _leaves(value: Any, fields: frozenset[str] | None = None, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields all tensors in a value with their paths; of a knowledge only those of ``fields``."""
    if isinstance(value, Tensor):
        yield path, value
        return
    prefix = f"{path}." if path else ""
    for key, item in _items(value):
        if fields is None or key in fields:
            yield from _leaves(item, None, f"{prefix}{key}")


def _replaced(value: Any, tensors: Mapping[str, Tensor], path: str = "") -> Any:
    """Returns a value in which tensors are replaced by those of the same path."""
    if isinstance(value, Tensor):
        return tensors.get(path, value)
    prefix = f"{path}." if path else ""
    items = {key: _replaced(item, tensors, f"{prefix}{key}") for key, item in _items(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **items)
    if isinstance(value, Mapping):
        return items
    return type(value)(items.values()) if isinstance(value, list | tuple) else value


def _items(value: Any) -> list[tuple[Any, Any]]:
    """Returns the parts of a container with their names; none of anything else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []


def _compressed(row: Mapping[str, Tensor]) -> bytes:
    return zlib.compress(bytes_of_tensors(dict(row)), level=1)


class _DamagedError(Exception):
    """What is wrong with the content of a file."""


def _uncompressed(data: bytes, largest: int) -> bytes:
    """Returns the safetensors file in a compressed one, which may claim any size.

    Args:
        data: what :func:`_compressed` returned.
        largest: bytes that the file may have.

    Raises:
        _DamagedError: its header cannot be read, its size is another one than the header says, or is larger.
        zlib.error: it was not written by zlib.
    """
    stream = zlib.decompressobj()

    begin = stream.decompress(data, 8)
    length = int.from_bytes(begin, "little")
    if not 0 < length <= min(_LONGEST_HEADER, largest):
        raise _DamagedError(f"its header has {length} bytes")
    header = stream.decompress(stream.unconsumed_tail, length)
    try:
        entries = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        size = max((entry["data_offsets"][1] for entry in entries), default=0)
        fits = 0 <= size <= largest
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _DamagedError(f"its header is no JSON of a safetensors file: {error!s:.100}") from error
    if not fits:
        raise _DamagedError(f"its header says that it holds {size!r:.40} bytes, expected {largest} at most")
    content = stream.decompress(stream.unconsumed_tail, size + 1)
    rest = stream.unconsumed_tail or not stream.eof
    if len(content) != size or rest or stream.unused_data:
        raise _DamagedError(f"it does not hold the {size} bytes that its header says")
    return begin + header + content
