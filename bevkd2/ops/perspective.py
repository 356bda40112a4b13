"""Image content, perspective matrix and occlusion of a feature level, in plain PyTorch.

These are the factors of a cell's weight in depth-guided distillation. :func:`bevkd2.ops.draw_weights`
computes their product for all levels in one launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import grid_shape, integer


def content_mask(image_sizes: Tensor, level_shape: tuple[int, int], stride: int) -> Tensor:
    """Returns which cells of a feature level lie in the image, not in its padding.

    Args:
        image_sizes: (B, 2) height and width of the images in pixels, before padding.
        level_shape: rows and columns of the level.
        stride: of the level, in pixels.

    Returns:
        (B, rows, columns) bool: whether the cell's first pixel lies in the image.

    Raises:
        ValueError: ``level_shape`` or ``stride`` are no integers.
    """
    _check_grid("content_mask", level_shape, stride)
    rows = torch.arange(level_shape[0], device=image_sizes.device) * stride
    columns = torch.arange(level_shape[1], device=image_sizes.device) * stride
    return (rows[None, :, None] < image_sizes[:, 0, None, None]) & (
        columns[None, None, :] < image_sizes[:, 1, None, None]
    )


def perspective_matrix(
    image_sizes: Tensor,
    level_shape: tuple[int, int],
    stride: int,
    *,
    amplitude: float,
    sigma: Sequence[float],
    center: Sequence[float],
) -> Tensor:
    """Computes the perspective matrix of a level (Eq. 3), a Gaussian around the image's farthest point.

    M(x, y) = A exp(-((x - x*) / (w sigma_x))^2 - ((y - y*) / (h sigma_y))^2), without a factor 2, at the
    centres of the cells; w and h are the width and height of the image without padding.

    Args:
        image_sizes: (B, 2) height and width of the images in pixels, before padding.
        level_shape: rows and columns of the level.
        stride: of the level, in pixels.
        amplitude: A, 0.3 in the paper.
        sigma: sigma_x in image widths and sigma_y in image heights, both 0.7 in the paper.
        center: x* / w and y* / h, the image's centre (0.5, 0.5) in the paper.

    Returns:
        (B, rows, columns) float32.

    Raises:
        ValueError: ``level_shape`` or ``stride`` are no integers.
    """
    _check_grid("perspective_matrix", level_shape, stride)
    y = (torch.arange(level_shape[0], device=image_sizes.device) + 0.5) * stride / image_sizes[:, :1]
    x = (torch.arange(level_shape[1], device=image_sizes.device) + 0.5) * stride / image_sizes[:, 1:]
    exponent_y = ((y - center[1]) / sigma[1]).square()
    exponent_x = ((x - center[0]) / sigma[0]).square()
    return amplitude * torch.exp(-exponent_y[:, :, None] - exponent_x[:, None, :])


def occlusion_factor(
    boxes2d: Sequence[Tensor],
    depths: Sequence[Tensor],
    level_shape: tuple[int, int],
    stride: int,
    near_depth: float,
) -> Tensor:
    """Computes the factor by which near objects lower the perspective matrix.

    The paper lowers the weight of "the occlusion region" of a near car, and does not say how. Here the
    factor of a cell whose centre lies in 2D boxes of objects is min(1, d / near_depth), where d is the depth
    of the nearest of them. The factor of all other cells is 1.

    Args:
        boxes2d: B tensors (n, 4) x1, y1, x2, y2 in pixels of the network's input image.
        depths: B tensors (n,) of the objects' depths in metres.
        level_shape: rows and columns of the level.
        stride: of the level, in pixels.
        near_depth: depth in metres from which on objects lower nothing.

    Returns:
        (B, rows, columns) float32 in (0, 1].

    Raises:
        ValueError: ``level_shape`` or ``stride`` are no integers.
    """
    _check_grid("occlusion_factor", level_shape, stride)
    factors = []
    for boxes, depth in zip(boxes2d, depths, strict=True):
        y = (torch.arange(level_shape[0], device=boxes.device) + 0.5) * stride
        x = (torch.arange(level_shape[1], device=boxes.device) + 0.5) * stride
        x1, y1, x2, y2 = boxes.float().unbind(1)
        in_rows = (y[None] >= y1[:, None]) & (y[None] < y2[:, None])
        in_columns = (x[None] >= x1[:, None]) & (x[None] < x2[:, None])
        covered = in_rows[:, :, None] & in_columns[:, None, :]
        kept = (depth.float() / near_depth).clamp(max=1.0)[:, None, None]
        ones = boxes.new_ones((1, *level_shape), dtype=torch.float32)
        factors.append(torch.cat([torch.where(covered, kept, 1.0), ones]).amin(0))
    return torch.stack(factors)


def _check_grid(op: str, level_shape: tuple[int, int], stride: int) -> None:
    """Checks what ``torch.arange`` would round."""
    grid_shape(op, "level_shape", level_shape)
    integer(op, "stride", stride)
