"""SMOKE's affine warp to the network's input size, with its random shift and scale in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# cv2 resamples with pixel centres at whole coordinates; here they are at halves.
_PIXEL_CENTER = 0.5


@dataclasses.dataclass(frozen=True)
class AffineAugmentation:
    """How far SMOKE shifts and scales an image (Liu et al., arXiv 2002.10111, section 4.1).

    The numbers are those of the published code. A window of the image, moved and sized by random steps, is
    what fills the network's input.
    """

    prob: float = 0.3
    """Probability; otherwise the whole image is the window."""
    shift: float = 0.2
    """Largest shift of the centre of the window, in widths and heights of the image."""
    scale: tuple[float, float] = (0.6, 1.4)
    """Least and largest size of the window relative to the image; below 1 the objects grow."""
    step: float = 0.1
    """Step between the possible values of both."""

    def __post_init__(self) -> None:
        low, high = self.scale
        if not (0 <= self.prob <= 1 and self.shift >= 0 and 0 < low <= high and self.step > 0):
            raise ValueError(
                f"affine augmentation: {self}, expected prob in 0..1, shift of 0 or more, "
                "0 < scale[0] <= scale[1], and a step above 0"
            )

    def window(
        self, image_size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[tuple[float, float], float, bool]:
        """Draws what part of an image to look at.

        Args:
            image_size: (height, width) in pixels.
            rng: the source of all randomness.

        Returns:
            The window's centre (x, y) and width in pixels, and whether it is a random one.
        """
        height, width = image_size
        if rng.random() >= self.prob:
            return (width / 2, height / 2), float(width), False
        right, down = rng.choice(_steps(-self.shift, self.shift, self.step), 2)
        factor = rng.choice(_steps(*self.scale, self.step))
        return (width * (0.5 + float(right)), height * (0.5 + float(down))), width * float(factor), True


def affine_warp(
    image: Tensor,
    size: tuple[int, int],
    rng: np.random.Generator | None = None,
    augmentation: AffineAugmentation | None = None,
) -> tuple[Tensor, Tensor, bool]:
    """Fills the network's input with an image, or with a random window of it; proportions are kept.

    The width decides the factor, so rows that do not fit are cut off above and below, and what the image does
    not cover is black.

    Args:
        image: uint8 (3, H, W).
        size: (height, width) of the result.
        rng: the source of all randomness; read only with an augmentation.
        augmentation: of training; None: the whole image.

    Returns:
        The image, uint8 (3, height, width). The (3, 3) float32 affine from pixels of ``image`` to pixels of
        the result, in continuous coordinates: pixel (row i, column j) covers [j, j + 1) x [i, i + 1). The
        calibration of the result is ``affine @ cam2img`` (on its first three rows), its ``image_to_original``
        the affine's inverse. And ``affine_augmented``: whether the window was a random one; where it is
        False the window is the whole image, with or without augmentation.

    Raises:
        ValueError: an augmentation without a source of randomness.
    """
    height, width = image.shape[1:]
    center, extent, augmented = (width / 2, height / 2), float(width), False
    if augmentation is not None:
        if rng is None:
            raise ValueError("affine_warp: an augmentation needs rng, a numpy.random.Generator; got None")
        center, extent, augmented = augmentation.window((height, width), rng)
    affine = window_affine(center, extent, size)
    to_center = np.array([[1, 0, _PIXEL_CENTER], [0, 1, _PIXEL_CENTER], [0, 0, 1]])
    resampling = (np.linalg.inv(to_center) @ affine @ to_center)[:2]
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    warped = cv2.warpAffine(pixels, resampling, (size[1], size[0]), flags=cv2.INTER_LINEAR)
    return torch.from_numpy(warped).permute(2, 0, 1).contiguous(), torch.from_numpy(affine).float(), augmented


def window_affine(center: Sequence[float], width: float, size: tuple[int, int]) -> npt.NDArray[Any]:
    """Returns the affine that maps a window to an image: centre on centre, the width filled.

    Args:
        center: (x, y) of the window in pixels.
        width: of the window in pixels.
        size: (height, width) of the image to fill.

    Returns:
        (3, 3) float64.
    """
    factor = size[1] / width
    return np.array(
        [
            [factor, 0, size[1] / 2 - factor * center[0]],
            [0, factor, size[0] / 2 - factor * center[1]],
            [0, 0, 1],
        ]
    )


def _steps(low: float, high: float, step: float) -> npt.NDArray[Any]:
    """Returns the numbers from ``low`` by ``step`` to ``high``, both included."""
    return low + step * np.arange(int((high - low) / step + 1e-6) + 1)
