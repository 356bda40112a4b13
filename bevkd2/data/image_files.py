"""Image files: reading one as a tensor, and its size alone."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The signature, then the first chunk: its length, its name IHDR, width, height (PNG specification, 11.2.1).
_PNG_HEADER = struct.Struct(">8sI4sII")


def read_image(path: str | Path, owner: str, size: tuple[int, int], source: str) -> Tensor:
    """Reads and decodes a JPEG or PNG.

    Args:
        path: the file.
        owner: what it belongs to, for messages, such as "sample 'ca9a'".
        size: (height, width) that the dataset gives, for which its intrinsics hold.
        source: where it gives them, for messages.

    Returns:
        uint8 (3, H, W), RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off or no image, or its size is not that of the dataset.
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
    if tuple(image.shape[1:]) != tuple(size):
        raise ValueError(
            f"image {path} of {owner} is {image.shape[1]} x {image.shape[2]} (height x "
            f"width), but {source} says {size[0]} x {size[1]}, for which the intrinsics hold"
        )
    return image


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
