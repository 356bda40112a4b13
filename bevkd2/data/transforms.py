"""Images: resizing, and BEVFormer's photometric augmentation."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Returns (height, width) of an image of the given size resized by ``scale``."""
    return round(size[0] * scale), round(size[1] * scale)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes an image bilinearly, without antialiasing (so published weights see what they were trained on).

    Args:
        image: uint8 (C, H, W).
        size: (height, width) of the result.

    Returns:
        uint8 (C, height, width), in continuous coordinates scaled by the ratio of the sizes.
    """
    if tuple(image.shape[1:]) == tuple(size):
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]


class PhotometricDistortion:
    """BEVFormer's photometric augmentation.

    Each of these happens with probability 1/2: brightness, a shift of up to 32; contrast, a factor in [0.5,
    1.5], before or after the colours change (even odds); saturation, a factor in [0.5, 1.5]; hue, a shift of
    up to 18 degrees; a random order of the channels. The published code works in floating point on images in
    [0, 255]; so does this, and clamps and rounds once, at the end.
    """

    brightness = 32.0
    contrast = (0.5, 1.5)
    saturation = (0.5, 1.5)
    hue = 18.0

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Distorts one image.

        Args:
            image: uint8 (3, H, W), RGB.
            rng: the source of all randomness; give each image its own, or call in a fixed order.

        Returns:
            uint8 (3, H, W).
        """
        apply = rng.random(6) < 0.5
        contrast_first = bool(apply[5])
        shift = rng.uniform(-self.brightness, self.brightness) if apply[0] else 0.0
        contrast = rng.uniform(*self.contrast) if apply[1] else 1.0
        saturation = rng.uniform(*self.saturation) if apply[2] else 1.0
        hue = rng.uniform(-self.hue, self.hue) if apply[3] else 0.0
        order = rng.permutation(3) if apply[4] else np.arange(3)

        out = image.float()
        early, late = (contrast, 1.0) if contrast_first else (1.0, contrast)
        out = out.add_(shift).mul_(early)
        if apply[2] or apply[3]:
            out = _change_colours(out, saturation, hue)
        out = out.mul_(late)[torch.from_numpy(order)]
        return out.round_().clamp_(0, 255).to(torch.uint8)


def _change_colours(image: Tensor, saturation: float, hue: float) -> Tensor:
    """Scales the saturation and shifts the hue in the hexcone (HSV) model.

    Args:
        image: float (3, H, W), RGB.
        saturation: factor.
        hue: shift in degrees.

    Returns:
        float (3, H, W). With value V = max, chroma C = V - min and hue h in sextants, channel n of (5, 3, 1)
        is V - C * clamp(min(k, 4 - k), 0, 1) where k = (n + h) mod 6.
    """
    value = image.amax(dim=0)
    if hue == 0.0:  # V - channel is C times a function of the hue alone
        return value - (value - image) * saturation
    chroma = value - image.amin(dim=0)
    red, green, blue = image
    safe = chroma.clamp(min=1e-6)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    offsets = torch.tensor([5.0, 3.0, 1.0]).view(3, 1, 1)
    k = (offsets + sextant + hue / 60) % 6
    return value - saturation * chroma * torch.minimum(k, 4 - k).clamp_(0, 1)
