"""Pixel weights drawn box by box in plain PyTorch: slow."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bevkd2.ops.perspective import content_mask, occlusion_factor, perspective_matrix
from bevkd2.ops.pixel_weights import BoxMask, Occlusion, Perspective, PixelWeights


def draw_weights_reference(
    level_shapes: Sequence[tuple[int, int]],
    *,
    strides: Sequence[int] | None = None,
    grid_range: tuple[float, float, float, float] | None = None,
    image_sizes: Tensor | None = None,
    perspective: Perspective | None = None,
    occlusion: Occlusion | None = None,
    boxes: Sequence[BoxMask] = (),
) -> PixelWeights:
    """Computes what :func:`bevkd2.ops.draw_weights` does, from the same arguments."""
    maps, contents = [], []
    for level, shape in enumerate(level_shapes):
        stride = 0 if strides is None else strides[level]  # not used by a BEV grid
        if image_sizes is not None:
            content = content_mask(image_sizes, shape, stride)
        else:
            drawn_from = boxes[0] if boxes else occlusion
            assert drawn_from is not None
            splits = drawn_from.splits
            content = torch.ones(len(splits) - 1, *shape, dtype=torch.bool, device=splits.device)
        weights = content.float()
        if perspective is not None and image_sizes is not None:
            weights = weights * perspective_matrix(
                image_sizes,
                shape,
                stride,
                amplitude=perspective.amplitude,
                sigma=perspective.sigma,
                center=perspective.center,
            )
        if occlusion is not None:
            parts = (
                _unpacked(occlusion.boxes, occlusion.splits),
                _unpacked(occlusion.depths, occlusion.splits),
            )
            weights = weights * occlusion_factor(*parts, shape, stride, occlusion.near_depth)
        for mask in boxes:
            drawn = [_drawn(mask, part, shape, strides, grid_range, level) for part in _split(mask)]
            weights = weights * _normalised(mask, torch.stack(drawn), content)
        maps.append(weights)
        contents.append(content)
    sums = torch.stack([weights.flatten(1).double().sum(1).float() for weights in maps])
    cells = torch.stack([content.flatten(1).sum(1).float() for content in contents])
    flat = torch.cat([weights.flatten(1) for weights in maps], 1)
    return PixelWeights(flat, sums, cells, tuple((rows, columns) for rows, columns in level_shapes))


def _drawn(
    mask: BoxMask,
    boxes: Tensor,
    shape: tuple[int, int],
    strides: Sequence[int] | None,
    grid_range: tuple[float, float, float, float] | None,
    level: int,
) -> Tensor:
    """Returns the mask (rows, columns) of one sample, before the background is normalised."""
    left, top, right, bottom = grid_range or (0.0, 0.0, 1.0, 1.0)
    step_x, step_y = (right - left) / shape[1], (bottom - top) / shape[0]
    if strides is not None:
        step_x = step_y = float(strides[level])
    columns = torch.arange(shape[1], device=boxes.device)
    rows = torch.arange(shape[0], device=boxes.device)[:, None]
    x, y = left + (columns + 0.5) * step_x, top + (rows + 0.5) * step_y
    best = torch.zeros(shape, device=boxes.device)
    for center_x, center_y, length, width, angle in boxes.tolist():
        column, row = (center_x - left) // step_x, (center_y - top) // step_y
        if mask.kind == "gaussian":
            center_x, center_y = left + (column + 0.5) * step_x, top + (row + 0.5) * step_y
        cosine, sine = math.cos(angle), math.sin(angle)
        u = (x - center_x) * cosine + (y - center_y) * sine
        v = (y - center_y) * cosine - (x - center_x) * sine
        if mask.kind == "gaussian":
            cell = (step_x * step_y) ** 0.5
            sigma_u, sigma_v = (mask.alpha * max(side, cell) / 6 for side in (length, width))
            squared = (u / sigma_u).square() + (v / sigma_v).square()
            value = torch.where(squared <= 9, (-squared / 2).exp(), 0)
        else:
            inside = (-length / 2 <= u) & (u < length / 2) & (-width / 2 <= v) & (v < width / 2)
            area = max(1.0, length * width / (step_x * step_y))
            by_area = mask.kind == "foreground" and mask.normalize
            value = (inside | ((columns == column) & (rows == row))) * (1 / area if by_area else 1.0)
        best = torch.maximum(best, value)
    return best


def _normalised(mask: BoxMask, drawn: Tensor, content: Tensor) -> Tensor:
    """Returns the final mask: of the background, 1 outside the boxes, divided by the number of such cells."""
    if mask.kind != "background":
        return drawn
    outside = 1 - drawn
    count = (outside * content).sum((1, 2), keepdim=True).clamp(min=1)
    return outside / count if mask.normalize else outside


def _split(mask: BoxMask) -> list[Tensor]:
    """Returns the boxes of every sample as x, y, length, width, angle."""
    boxes = mask.boxes.float()
    if boxes.shape[1] == 4:
        x1, y1, x2, y2 = boxes.unbind(1)
        boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, torch.zeros_like(x1)], 1)
    return _unpacked(boxes, mask.splits)


def _unpacked(rows: Tensor, splits: Tensor) -> list[Tensor]:
    """Returns the rows of every sample."""
    return list(rows.split(splits.diff().tolist()))
