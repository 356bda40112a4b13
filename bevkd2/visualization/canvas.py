"""Operations on RGB images that several views share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from bevkd2.visualization.objects import Image

BACKGROUND = 255
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def resize(image: Image, scale: float) -> Image:
    """Scales both sides of an image: cubic interpolation to enlarge, averaging to shrink.

    Args:
        image: (H, W, 3).
        scale: above 0; a side is one pixel at least.
    """
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=how), dtype=np.uint8)


def put_text(image: Image, text: str, origin: tuple[int, int], height: int = 14, box: bool = True) -> None:
    """Writes a line of text into an image, in place.

    Args:
        image: to write into.
        text: ASCII; OpenCV's fonts have no other characters.
        origin: x, y of the top left corner in pixels.
        height: height of capital letters in pixels.
        box: True: white text on a dark box; False: dark text without a box.
    """
    scale = height / 22  # the capitals of OpenCV's Hershey font are 22 pixels high at scale 1
    (width, tall), baseline = cv2.getTextSize(text, _FONT, scale, 1)
    x, y = origin
    if box:
        region = image[max(y, 0) : y + tall + baseline + 4, max(x, 0) : x + width + 6]
        region[:] = (0.35 * region).astype(np.uint8)
    color = (255, 255, 255) if box else (20, 20, 20)
    cv2.putText(image, text, (x + 3, y + tall + 2), _FONT, scale, color, 1, cv2.LINE_AA)


def stack(images: Sequence[Image], axis: int, gap: int = 6) -> Image:
    """Puts images side by side (axis 1) or one below the other (axis 0), the smaller ones padded.

    Args:
        images: at least one.
        axis: 0 or 1.
        gap: pixels between them.

    Returns:
        One image.
    """
    other = 1 - axis
    longest = max(image.shape[other] for image in images)
    parts: list[Image] = []
    for image in images:
        padding = [(0, 0), (0, 0), (0, 0)]
        padding[other] = (0, longest - image.shape[other])
        padding[axis] = (gap if parts else 0, 0)
        parts.append(np.pad(image, padding, constant_values=BACKGROUND))
    return np.concatenate(parts, axis=axis)


def with_title(image: Image, title: str, height: int = 18) -> Image:
    """Adds a band with a title above an image; the image is padded if the title is wider.

    Args:
        image: (H, W, 3) RGB.
        title: ASCII, one line.
        height: of capital letters in pixels; the band is twice as high.
    """
    (width, _), _ = cv2.getTextSize(title, _FONT, height / 22, 1)
    band = np.full((2 * height, max(image.shape[1], width + 16), 3), BACKGROUND, dtype=np.uint8)
    put_text(band, title, (4, height // 3), height, box=False)
    return stack([band, image], axis=0, gap=0)


def heat_map(values: npt.NDArray[np.floating[Any]], low: float, high: float) -> Image:
    """Colours a map of numbers, from dark blue to yellow.

    Args:
        values: (H, W); NaN is drawn grey.
        low: value of the darkest colour.
        high: value of the brightest colour.

    Returns:
        (H, W, 3).
    """
    span = max(high - low, 1e-12)
    levels = np.clip((np.nan_to_num(values, nan=low) - low) / span, 0, 1)
    colors = cv2.applyColorMap((levels * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    image = np.ascontiguousarray(colors[..., ::-1])
    image[np.isnan(values)] = 128
    return image


def save_image(path: str | Path, image: Image) -> None:
    """Writes an image; the suffix of the path decides the format.

    Args:
        path: the file; its folder is created.
        image: (H, W, 3) RGB.

    Raises:
        OSError: the image could not be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded, data = cv2.imencode(path.suffix, image[..., ::-1])
    if not encoded:
        raise OSError(f"{path}: the image could not be encoded as {path.suffix}; use .png or .jpg")
    path.write_bytes(data.tobytes())
