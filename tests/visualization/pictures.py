"""Comparison of pictures."""

from __future__ import annotations

import cv2
import numpy as np

from bevkd2.visualization.objects import Image


def contains(picture: Image, part: Image) -> bool:
    """Returns whether a part is somewhere in a picture, pixel for pixel.

    OpenCV's sums are float32, by an FFT on some CPUs: they tell where to look.
    """
    sums = cv2.matchTemplate(picture, part, cv2.TM_SQDIFF)
    rounding = 1e-5 * 255.0**2 * part.size
    height, width = part.shape[:2]
    return any(
        np.array_equal(picture[y : y + height, x : x + width], part)
        for y, x in np.argwhere(sums < sums.min() + rounding)
    )
