"""GridMask augmentation: drops a regular grid of squares from the images (Chen et al., arXiv 2001.04086)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GridMask(nn.Module):
    """In training, blanks squares of a random grid, the same in all cameras of a sample."""

    def __init__(self, *, prob: float, ratio: float, mode: int) -> None:
        """Set the strengths.

        Args:
            prob: probability that a sample is masked at all.
            ratio: width of the grid's bars over its period.
            mode: 1: the squares between the bars are blanked | 0: the bars are.
        """
        super().__init__()
        if mode not in (0, 1):
            raise ValueError(f"MODEL.GRID_MASK.MODE is {mode}, expected 0 (blank bars) or 1 (blank squares)")
        self.prob, self.ratio, self.mode = prob, ratio, mode

    def forward(self, images: Tensor) -> Tensor:
        """(B, N, C, H, W) -> the same shape; unchanged in eval mode."""
        if not self.training:
            return images
        height, width = images.shape[-2:]
        masks = [self.draw_mask(height, width) for _ in range(len(images))]
        return images * torch.stack(masks).to(images)[:, None, None]

    def draw_mask(self, height: int, width: int) -> Tensor:
        """Returns (H, W) of ones and zeros on the CPU; all ones with probability 1 - prob."""
        if float(torch.rand(())) > self.prob:
            return torch.ones(height, width)
        period = int(torch.randint(2, max(height, 3), ()))
        bar = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        bars = self._bars(height, period, bar)[:, None] | self._bars(width, period, bar)[None, :]
        return (bars if self.mode == 1 else ~bars).float()

    @staticmethod
    def _bars(length: int, period: int, bar: int) -> Tensor:
        start = int(torch.randint(period, ()))
        return (torch.arange(length) - start) % period < bar
