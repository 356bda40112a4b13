"""KITTI's calibration files, and whether one belongs to an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from bevkd2.kitti.labels import is_number
from bevkd2.kitti.text import read_ascii

_PROJECTION = "P2"  # of the left colour camera, which takes image_2
# The principal point of a whole image is near its middle: KITTI's are near 0.49 of the width and 0.46 to
# 0.49 of the height. Outside this range an image was resized, cropped or swapped without its calibration.
_PRINCIPAL_POINT_RANGE = (0.25, 0.75)


def read_cam2img(path: str | Path) -> npt.NDArray[np.float64]:
    """Reads the projection of image_2.

    Args:
        path: a file of calib: rows such as ``P2: `` and 12 numbers, row-major.

    Returns:
        (4, 4) P2 with the row 0 0 0 1: from metres in the rectified camera 0's frame, in which labels are, to
        (u * d, v * d, d, 1) with pixels u, v of image_2. Its translation is camera 2's against camera 0.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: P2 is missing, is there twice, or is no projection of a rectified camera.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"calibration {path} does not exist; unpack data_object_calib.zip again")
    rows = [line.partition(":") for line in read_ascii(path).decode(errors="replace").splitlines()]
    found = [numbers for key, _, numbers in rows if key.strip() == _PROJECTION]
    if len(found) != 1:
        keys = ", ".join(key.strip() for key, _, _ in rows if key.strip())
        raise ValueError(
            f"calibration {path} has {len(found)} rows {_PROJECTION}, expected one (rows there: "
            f"{keys or 'none'}); labels cannot be projected into image_2 without it: fetch the file again"
        )
    projection = _parse(path, found[0])
    if not (projection[0, 0] > 0 and projection[1, 1] > 0 and np.array_equal(projection[2, :3], [0, 0, 1])):
        raise ValueError(
            f"calibration {path}: {_PROJECTION} is {projection.tolist()}, expected the projection of a "
            "rectified camera: focal lengths above 0 and a third row that begins 0 0 1"
        )
    return np.concatenate([projection, [[0.0, 0.0, 0.0, 1.0]]])


def check_principal_point(
    path: str | Path, cam2img: npt.NDArray[np.float64], image: str | Path, size: tuple[int, int]
) -> None:
    """Refuses a calibration whose principal point is not within the middle half of the image.

    Args:
        path: of the calibration file, for the message.
        cam2img: (4, 4).
        image: the image's path, for the message.
        size: (height, width) of the image in pixels.

    Raises:
        ValueError: the point is outside of 1/4 to 3/4 of the width or of the height.
    """
    low, high = _PRINCIPAL_POINT_RANGE
    x, y = float(cam2img[0, 2]), float(cam2img[1, 2])
    if not (low <= x / size[1] <= high and low <= y / size[0] <= high):
        raise ValueError(
            f"image {image} is {size[1]} x {size[0]} (width x height), but the principal point in {path} is "
            f"({x:.1f}, {y:.1f}), expected within the middle half of the image; the image was resized or "
            f"cropped without its calibration, or one of the two is another frame's"
        )


def _parse(path: Path, numbers: str) -> npt.NDArray[np.float64]:
    words = numbers.split()
    if len(words) != 12 or not all(is_number(word.encode()) for word in words):
        raise ValueError(
            f"calibration {path}: {_PROJECTION} is {numbers.strip()[:200]!r}, expected 12 finite numbers, a "
            "(3, 4) matrix row by row; fetch the file again"
        )
    return np.array(words, dtype=np.float64).reshape(3, 4)
