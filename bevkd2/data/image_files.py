"""Image files: reading one as a tensor, and its size alone."""

from __future__ import annotations

import contextlib
import io
import logging
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.Image import DecompressionBombError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from bevkd2.d2 import log_first_n

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The signature, then the first chunk: its length, its name IHDR, width, height (PNG specification, 11.2.1).
_PNG_HEADER = struct.Struct(">8sI4sII")
_PNG_DEPTH = 24  # which byte has the bits a channel
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP")  # what torchvision decodes
# What Pillow raises on damaged files.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    DecompressionBombError,
)
_NOT_REGULAR = "a folder, a pipe or a device, expected a file; fetch the image again"
_DARK = 16  # a high byte below it: 12 bits are enough for all values of the image


def read_image(
    path: str | Path,
    owner: str,
    size: tuple[int, int],
    source: str,
    needed: tuple[int, int] | None = None,
) -> Tensor:
    """Reads and decodes a JPEG or PNG.

    Of a PNG with 16 bits a channel the high byte is taken, as Pillow and OpenCV do.

    Args:
        path: the file.
        owner: what it belongs to, for messages, such as "sample 'ca9a'".
        size: (height, width) that the dataset gives, for which its intrinsics hold.
        source: where it gives them, for messages.
        needed: (height, width) that the image will be resized to, where a JPEG may be decoded at 1/2, 1/4 or
            1/8 of its size as long as that is not smaller, and divides it; None: never.

    Returns:
        uint8 (3, H, W), RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off, no image, an animation or no regular file, or its size is not that
            of the dataset.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"image {path} of {owner} is {_NOT_REGULAR}")
    if not path.is_file():
        raise FileNotFoundError(
            f"image {path} of {owner} does not exist; unpack the images of the split again"
        )
    data = path.read_bytes()
    try:
        with _pillow():
            file = Image.open(io.BytesIO(data), formats=_FORMATS)
        # What the header states is checked before memory is taken for it.
        _check_size((file.height, file.width), path, owner, size, source)
        if needed is not None and file.format == "JPEG" and (divisor := _divisor(size, needed)) > 1:
            return _decode_reduced(file, divisor)
        image = _decode_png(file, data, path) if file.format == "PNG" else _decode(data)
    except _UndecodableError as error:
        raise ValueError(
            f"image {path} of {owner} cannot be decoded ({len(data)} bytes): it is cut off or no JPEG or "
            f"PNG; fetch it again. {error}"
        ) from error
    if image.ndim != 3:
        raise ValueError(
            f"image {path} of {owner} is an animation of {len(image)} pictures, expected one picture: a JPEG "
            "or PNG"
        )
    _check_size((image.shape[1], image.shape[2]), path, owner, size, source)
    return image


def _check_size(found: tuple[int, int], path: Path, owner: str, size: tuple[int, int], source: str) -> None:
    if found != tuple(size):
        raise ValueError(
            f"image {path} of {owner} is {found[0]} x {found[1]} (height x width), but {source} says "
            f"{size[0]} x {size[1]}, for which the intrinsics hold"
        )


class _UndecodableError(Exception):
    """Why an image cannot be decoded."""


@contextlib.contextmanager
def _pillow() -> Iterator[None]:
    """Translates Pillow's errors of damaged files."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise _UndecodableError("It does not begin as an image does") from error
    except _PILLOW_ERRORS as error:
        raise _UndecodableError(f"Pillow says: {error}") from error


def _decode(data: bytes) -> Tensor:
    """Decodes anything but a PNG."""
    try:
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        image: Tensor = decode_image(content, mode=ImageReadMode.RGB)
    except RuntimeError as error:
        raise _UndecodableError(f"torchvision says: {_reason(error)}") from error
    return image


def _divisor(size: tuple[int, int], needed: tuple[int, int]) -> int:
    """Returns the largest of 8, 4, 2 and 1 by which a size can be divided and still be what is needed."""
    sides = list(zip(size, needed, strict=True))
    fitting = (n for n in (8, 4, 2) if all(side % n == 0 and side // n >= least for side, least in sides))
    return next(fitting, 1)


def _decode_reduced(file: ImageFile.ImageFile, divisor: int) -> Tensor:
    """Decodes a JPEG at a fraction of its size, by libjpeg's smaller inverse transform."""
    with _pillow():
        file.draft("RGB", (file.width // divisor, file.height // divisor))
        image = np.array(file.convert("RGB"))
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def _decode_png(file: ImageFile.ImageFile, data: bytes, path: Path) -> Tensor:
    """Decodes a PNG by Pillow: torchvision 0.29 ends the process where its picture data are damaged."""
    _check_chunks(data)
    with _pillow():
        file.load()
    if file.mode.startswith("I"):  # one channel of 16 bits
        grey = np.asarray(file).astype(np.int32) >> 8
        image = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    else:
        image = np.array(file.convert("RGB"))
    if data[_PNG_DEPTH] == 16:
        _say_if_dark(int(image.max()), path)
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def _check_chunks(data: bytes) -> None:
    """Checks that a PNG is whole, and the checksums of what makes up the picture; Pillow does not."""
    at, view = len(_PNG_SIGNATURE), memoryview(data)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        if kind[:1].isupper() and zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise _UndecodableError(f"The checksum of its part {kind!r} at byte {at} is wrong")
        if kind == b"IEND":
            return
        at = end + 4
    raise _UndecodableError("Its last part is missing")


def _say_if_dark(brightest: int, path: Path) -> None:
    """Warns of an image of 16 bits a channel whose values have 12 bits or fewer."""
    if brightest < _DARK:
        log_first_n(
            logging.WARNING,
            f"image {path} has 16 bits a channel, of which the high byte is read: it is {brightest} at most, "
            "so the image is nearly black. If its values have 12 bits or fewer, convert the images to 8 bits",
            name=__name__,
        )


def png_size(path: str | Path) -> tuple[int, int]:
    """Returns (height, width) of a PNG in pixels, from its first bytes.

    Args:
        path: the file; its other bytes are not read, so that damage there is not seen.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no PNG, or no regular file: reading a pipe may never end.
    """
    path = Path(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"image {path} is {_NOT_REGULAR}")
    with path.open("rb") as file:
        header = file.read(_PNG_HEADER.size)
    if len(header) == _PNG_HEADER.size:
        signature, _, chunk, width, height = _PNG_HEADER.unpack(header)
        if signature == _PNG_SIGNATURE and chunk == b"IHDR" and width > 0 and height > 0:
            return height, width
    raise ValueError(
        f"image {path} ({path.stat().st_size} bytes) does not begin as a PNG does; fetch it again, or "
        "convert it (KITTI's images are PNG files)"
    )


def _reason(error: RuntimeError) -> str:
    """Returns the message of torchvision without the source file of its build."""
    return str(error).splitlines()[0].rsplit(".cpp:", 1)[-1].split(", ", 1)[-1]
