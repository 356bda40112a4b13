"""Pictures as an MP4 video, by PyAV (the optional extra ``video``)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from bevkd2.visualization.canvas import BACKGROUND, resize
from bevkd2.visualization.objects import Image

_QUALITY = "20"  # constant rate factor of H.264: 18 is hardly told from the original, 23 is the default
_MOST_RATE_DENOMINATOR = 1000


def write_video(path: str | Path, frames: Iterable[Image], rate: float) -> int:
    """Writes pictures as H.264 in MP4, which browsers play; the file is complete or not there.

    Args:
        path: the file, its suffix ``.mp4``; its folder is created.
        frames: (H, W, 3) RGB; those of another size than the first are padded or scaled down to it. An odd
            height or width is padded by a pixel.
        rate: frames per second.

    Returns:
        The number of frames.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        ValueError: no picture, or a rate or a suffix that cannot be.
    """
    av = _pyav()
    path = Path(path)
    if path.suffix != ".mp4":
        raise ValueError(f"{path}: the suffix of a video is {path.suffix!r}, expected '.mp4'")
    if not rate > 0:
        raise ValueError(f"{path}: the frame rate is {rate:g}, expected frames per second above 0")
    pictures = iter(frames)
    first = next(pictures, None)
    if first is None:
        raise ValueError(f"{path}: there is no picture to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial.mp4")
    try:
        with av.open(str(partial), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream(
                "libx264",
                rate=Fraction(rate).limit_denominator(_MOST_RATE_DENOMINATOR),
                options={"crf": _QUALITY},
            )
            height, width = (size + size % 2 for size in first.shape[:2])  # 4:2:0 halves both
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            count = 0
            for picture in itertools.chain([first], pictures):
                frame = av.VideoFrame.from_ndarray(_fitted(picture, (height, width)), format="rgb24")
                container.mux(stream.encode(frame))
                count += 1
            container.mux(stream.encode())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _pyav() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'videos are written with PyAV, which is not installed: pip install "av>=14" (or bevkd2[video])',
            name="av",
        ) from error
    return av


def _fitted(picture: Image, size: tuple[int, int]) -> Image:
    """Returns a picture of a size: padded at the right and below, scaled down before where it is larger."""
    shrink = min(wanted / have for wanted, have in zip(size, picture.shape[:2], strict=True))
    if shrink < 1:
        picture = resize(picture, shrink)[: size[0], : size[1]]
    missing = [wanted - have for wanted, have in zip(size, picture.shape[:2], strict=True)]
    fitted: Image = np.pad(picture, ((0, missing[0]), (0, missing[1]), (0, 0)), constant_values=BACKGROUND)
    return fitted
