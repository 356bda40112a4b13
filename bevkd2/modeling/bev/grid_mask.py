"""GridMask augmentation: drops a regular grid of squares from the images (Chen et al., arXiv 2001.04086)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class MaskPattern:
    """A regular grid of horizontal and vertical bars, in pixels."""

    period: int
    """From bar to bar."""
    bar: int
    """Width of a bar, below the period."""
    row: int
    """Where the first horizontal bar begins."""
    column: int
    """Where the first vertical bar begins."""

    def scaled(self, factor: float) -> MaskPattern:
        """Returns the pattern of the same image resized by ``factor``, to whole pixels."""
        period = max(2, round(self.period * factor))
        bar = min(max(1, round(self.bar * factor)), period - 1)
        row, column = round(self.row * factor) % period, round(self.column * factor) % period
        return MaskPattern(period, bar, row, column)

    def mask(self, height: int, width: int) -> Tensor:
        """Draws the pattern on the CPU.

        Args:
            height: H in pixels.
            width: W.

        Returns:
            (H, W) float32: 1 on the bars, 0 in the squares between them.
        """
        rows, columns = (
            (torch.arange(length) - start) % self.period < self.bar
            for length, start in ((height, self.row), (width, self.column))
        )
        bars = rows[:, None] | columns[None, :]
        return bars.float()


@dataclasses.dataclass(frozen=True)
class GridMask:
    """Draws a random grid for a sample, the same for all of its cameras."""

    prob: float
    """Probability that a sample is masked at all."""
    ratio: float
    """Width of the grid's bars over its period."""

    def draw(self, height: int) -> MaskPattern | None:
        """Draws the mask of one sample.

        The numbers come from torch's default generator of the main process, which the trainer seeds for every
        iteration: masks depend neither on the data loader's workers nor on where a training was resumed.

        Args:
            height: of the sample's images in pixels, before padding.

        Returns:
            The pattern; None: the sample is not masked.
        """
        chance, *numbers = torch.rand(4).tolist()
        if chance > self.prob:
            return None
        period = 2 + int(numbers[0] * (max(height, 3) - 2))
        bar = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        return MaskPattern(period, bar, int(numbers[1] * period), int(numbers[2] * period))


def apply_masks(images: Tensor, patterns: Sequence[MaskPattern | None]) -> Tensor:
    """Blanks the pixels that each sample's pattern names.

    Args:
        images: (R, N, C, H, W), normalised: a blank pixel is 0.
        patterns: one per sample; None: it is not masked.

    Returns:
        (R, N, C, H, W).
    """
    if all(pattern is None for pattern in patterns):
        return images
    height, width = images.shape[-2:]
    masks = [
        torch.ones(height, width) if pattern is None else pattern.mask(height, width) for pattern in patterns
    ]
    return images * torch.stack(masks).to(images)[:, None, None]
