"""Normalising, padding and batching of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevkd2.config import CfgNode


class PixelNormalizer(nn.Module):
    """Turns uint8 RGB images into what the backbone was trained on; it has no entries in a state dict."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        pixel_format: str = "RGB",
        size_divisibility: int = 32,
    ) -> None:
        """Checks and keeps the statistics.

        Args:
            mean: three numbers in the order of ``pixel_format``, 0..255.
            std: of the same length, above 0.
            pixel_format: "RGB" | "BGR", the order that the backbone was trained on.
            size_divisibility: images are padded to a multiple of it (pixels).

        Raises:
            ValueError: an unknown channel order, or statistics that are not three numbers each.
        """
        super().__init__()
        if pixel_format not in ("RGB", "BGR"):
            raise ValueError(f"MODEL.PIXEL_FORMAT is {pixel_format!r}, expected 'RGB' or 'BGR'")
        if not len(mean) == len(std) == 3 or min(std) <= 0:
            raise ValueError(
                f"MODEL.PIXEL_MEAN is {list(mean)}, MODEL.PIXEL_STD {list(std)}, expected three numbers "
                "each, deviations above 0"
            )
        self.pixel_format, self.size_divisibility = pixel_format, size_divisibility
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PixelNormalizer:
        """Builds the normaliser that MODEL.PIXEL_* and MODEL.SIZE_DIVISIBILITY describe."""
        model = cfg.MODEL
        return cls(
            model.PIXEL_MEAN,
            model.PIXEL_STD,
            pixel_format=model.PIXEL_FORMAT,
            size_divisibility=model.SIZE_DIVISIBILITY,
        )

    @property
    def device(self) -> torch.device:
        """Returns the device that images are moved to."""
        return self.mean.device

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Normalises, then pads with zeros, right and bottom, to one size.

        Args:
            images: R tensors (N, 3, h, w), uint8 RGB.

        Returns:
            (R, N, 3, H, W) float32.
        """
        step = max(self.size_divisibility, 1)
        height = -(-max(image.shape[-2] for image in images) // step) * step
        width = -(-max(image.shape[-1] for image in images) // step) * step
        batch = []
        for image in images:
            pixels = image.to(self.device, non_blocking=True).float()
            pixels = pixels.flip(-3) if self.pixel_format == "BGR" else pixels
            pixels = (pixels - self.mean[:, None, None]) / self.std[:, None, None]
            batch.append(F.pad(pixels, (0, width - image.shape[-1], 0, height - image.shape[-2])))
        return torch.stack(batch)
