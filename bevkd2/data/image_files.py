"""Image files: reading one as a tensor, and its size alone."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from bevkd2.d2 import log_first_n

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The signature, then the first chunk: its length, its name IHDR, width, height (PNG specification, 11.2.1).
_PNG_HEADER = struct.Struct(">8sI4sII")
_DARK = 16  # a high byte below it: 12 bits are enough for all values of the image


def read_image(path: str | Path, owner: str, size: tuple[int, int], source: str) -> Tensor:
    """Reads and decodes a JPEG or PNG.

    Of a PNG with 16 bits a channel the high byte is taken, as Pillow and OpenCV do.

    Args:
        path: the file.
        owner: what it belongs to, for messages, such as "sample 'ca9a'".
        size: (height, width) that the dataset gives, for which its intrinsics hold.
        source: where it gives them, for messages.

    Returns:
        uint8 (3, H, W), RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off, no image or an animation, or its size is not that of the dataset.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"image {path} of {owner} does not exist; unpack the images of the split again"
        )
    try:
        data = torch.from_numpy(np.fromfile(path, dtype=np.uint8))
        image: Tensor = decode_image(data, mode=ImageReadMode.RGB)
    except RuntimeError as error:
        raise ValueError(
            f"image {path} of {owner} cannot be decoded ({path.stat().st_size} bytes): it "
            f"is cut off or no JPEG or PNG; fetch it again. torchvision says: {_reason(error)}"
        ) from error
    if image.ndim != 3:
        raise ValueError(
            f"image {path} of {owner} is an animation of {len(image)} pictures, expected one picture: a JPEG "
            "or PNG"
        )
    if tuple(image.shape[1:]) != tuple(size):
        raise ValueError(
            f"image {path} of {owner} is {image.shape[1]} x {image.shape[2]} (height x "
            f"width), but {source} says {size[0]} x {size[1]}, for which the intrinsics hold"
        )
    return image if image.dtype == torch.uint8 else _high_byte(image, path)


def _high_byte(image: Tensor, path: Path) -> Tensor:
    """Returns the high byte of every value of a uint16 image."""
    high = (image.to(torch.int32) >> 8).to(torch.uint8)
    brightest = int(high.max())
    if brightest < _DARK:
        log_first_n(
            logging.WARNING,
            f"image {path} has 16 bits a channel, of which the high byte is read: it is {brightest} at most, "
            "so the image is nearly black. If its values have 12 bits or fewer, convert the images to 8 bits",
            name=__name__,
        )
    return high


def png_size(path: str | Path) -> tuple[int, int]:
    """Returns (height, width) of a PNG in pixels, from its first bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no PNG.
    """
    path = Path(path)
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
