"""GridMask augmentation: drops a regular grid of squares from the images (Chen et al., arXiv 2001.04086)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GridMask(nn.Module):
    """Blanks squares of a random grid, the same in all cameras of a sample.

    A mask is a function of four random numbers, so that teacher and student can be given the same one.
    """

    def __init__(self, *, prob: float, ratio: float, mode: int) -> None:
        """Sets the strengths.

        Args:
            prob: probability that a sample is masked at all.
            ratio: width of the grid's bars over its period.
            mode: 1: the squares between the bars are blanked | 0: the bars are.
        """
        super().__init__()
        if mode not in (0, 1):
            raise ValueError(f"MODEL.GRID_MASK.MODE is {mode}, expected 0 (blank bars) or 1 (blank squares)")
        self.prob, self.ratio, self.mode = prob, ratio, mode

    def draw(self, height: int) -> Tensor:
        """Draws the mask of one sample.

        The numbers come from torch's default generator of the main process, which the trainer seeds for every
        iteration: masks depend neither on the data loader's workers nor on where a training was resumed.

        Args:
            height: of the sample's images in pixels, before padding.

        Returns:
            (4,) int64: period (0: no mask), width of a bar, and where the first row and column of bars start.
        """
        chance, *numbers = torch.rand(4).tolist()
        if chance > self.prob:
            return torch.zeros(4, dtype=torch.int64)
        period = 2 + int(numbers[0] * (max(height, 3) - 2))
        bar = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        return torch.tensor([period, bar, int(numbers[1] * period), int(numbers[2] * period)])

    def forward(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Masks (B, N, C, H, W) images by (B, 4) numbers of :meth:`draw`."""
        height, width = images.shape[-2:]
        masks = [self.mask(numbers, height, width) for numbers in drawn]
        return images * torch.stack(masks).to(images)[:, None, None]

    def mask(self, drawn: Tensor, height: int, width: int) -> Tensor:
        """Returns (H, W) of ones and zeros on the CPU, of the (4,) numbers of :meth:`draw`."""
        period, bar, row, column = drawn.tolist()
        if not period:
            return torch.ones(height, width)
        rows, columns = (
            (torch.arange(length) - start) % period < bar
            for length, start in ((height, row), (width, column))
        )
        bars = rows[:, None] | columns[None, :]
        mask: Tensor = (bars if self.mode == 1 else ~bars).float()
        return mask
