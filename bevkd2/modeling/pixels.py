"""Normalising, padding and batching of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class PixelNormalizer:
    """Turns uint8 RGB images into what the backbone was trained on."""

    mean: Tensor
    """(3,) in the order that the backbone reads, 0..255."""
    std: Tensor
    """(3,)."""
    to_bgr: bool
    size_divisibility: int

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """Normalises, then pads with zeros to one size.

        Args:
            images: (N, 3, h, w) uint8 RGB each.

        Returns:
            (R, N, 3, H, W) float32.
        """
        step = max(self.size_divisibility, 1)
        height = -(-max(image.shape[-2] for image in images) // step) * step
        width = -(-max(image.shape[-1] for image in images) // step) * step
        batch = []
        for image in images:
            pixels = image.to(self.mean.device).float()
            pixels = pixels.flip(-3) if self.to_bgr else pixels
            pixels = (pixels - self.mean[:, None, None]) / self.std[:, None, None]
            batch.append(F.pad(pixels, (0, width - image.shape[-1], 0, height - image.shape[-2])))
        return torch.stack(batch)
