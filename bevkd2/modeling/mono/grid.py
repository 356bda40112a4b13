"""The locations of dense detectors: all cells of all levels, finest level first, row-major within a level."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

BACKGROUND = -1
"""What an assignment says of a location that has no object."""


@dataclasses.dataclass(frozen=True, eq=False)
class DenseGrid:
    """Shapes and strides of L levels, and their Q locations; made once per step."""

    shapes: list[tuple[int, int]]
    """Rows and columns of every level."""
    strides: list[int]
    """Stride of every level in pixels."""
    locations: Tensor
    """(Q, 2) float32 x, y of every location in pixels of the network's input."""
    location_strides: Tensor
    """(Q,) float32: the stride of the level that each location belongs to."""

    @classmethod
    def of_levels(
        cls, shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device | str
    ) -> DenseGrid:
        """Makes the grid of levels.

        Args:
            shapes: rows and columns of every level.
            strides: stride of every level in pixels.
            device: of the tensors.
        """
        locations, location_strides = [], []
        for (rows, columns), stride in zip(shapes, strides, strict=True):
            y = torch.arange(rows, dtype=torch.float32, device=device) * stride + stride // 2
            x = torch.arange(columns, dtype=torch.float32, device=device) * stride + stride // 2
            locations.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2))
            location_strides.append(torch.full((rows * columns,), float(stride), device=device))
        return cls(list(shapes), list(strides), torch.cat(locations), torch.cat(location_strides))

    @classmethod
    def of_image(
        cls, image_size: tuple[int, int], strides: Sequence[int], device: torch.device | str
    ) -> DenseGrid:
        """Makes the grid of a pyramid.

        A convolution of stride 2 with padding 1 rounds the number of cells up, and so does this.

        Args:
            image_size: height and width of the padded images in pixels.
            strides: stride of every level in pixels.
            device: of the tensors.
        """
        height, width = image_size
        shapes = [(-(-height // stride), -(-width // stride)) for stride in strides]
        return cls.of_levels(shapes, strides, device)

    def per_location(self, per_level: Sequence[Sequence[float]]) -> Tensor:
        """Repeats numbers of the levels for their locations.

        Args:
            per_level: n numbers of each level.

        Returns:
            (Q, n) float32 on the grid's device.
        """
        device = self.locations.device
        cells = torch.tensor([rows * columns for rows, columns in self.shapes], device=device)
        values = torch.tensor(per_level, dtype=torch.float32, device=device)
        # Without output_size, CUDA would have to be waited for.
        return values.repeat_interleave(cells, dim=0, output_size=len(self.locations))


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Flattens maps (B, C, h, w) of all levels to (B, Q, C), in the order of :class:`DenseGrid`."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
