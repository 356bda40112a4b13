"""Weights of the cells of feature levels and BEV grids, drawn from boxes and the image in one launch.

The weight of a cell is the product of these factors:

- Content (with ``image_sizes``): 1 if the cell's first pixel lies in the image, 0 in the padding.
- :class:`Perspective`: a Gaussian around the image's farthest point (depth-guided distillation, Eq. 3).
- :class:`Occlusion`: min(1, depth / near_depth) in the 2D boxes of objects; the smallest if boxes overlap.
- :class:`BoxMask` of kind ``"foreground"``: 1 in a box, 0 elsewhere. Normalised, 1 / (area of the box in
  cells, at least 1); the largest if boxes overlap.
- :class:`BoxMask` of kind ``"background"``: 1 outside of all boxes. Normalised, 1 / (number of content cells
  outside of all boxes). The two normalised masks are the scale masks of FGD (arXiv 2111.11837), except that
  FGD rounds boxes outwards to whole cells.
- :class:`BoxMask` of kind ``"gaussian"``: exp(-u^2 / (2 sigma_u^2) - v^2 / (2 sigma_v^2)) along the sides of
  a box; the largest if objects overlap. Sigma is alpha / 6 of the side (TTFNet, arXiv 1909.00700), where a
  side counts as at least one cell. The Gaussian is centred on the cell that contains the box's centre and is
  zero beyond 3 sigma (an ellipse; CenterNet, arXiv 1904.07850, cuts its heatmaps at a square), so that every
  object in the grid has a cell of weight 1.

A cell lies in a box if its centre does. The cell that contains the centre of a box always counts as inside
(except for occlusions), so that no object is lost on a coarse level.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .arguments import check_device, grid_shape, integer

_OP = "draw_weights"
_FOREGROUND, _BACKGROUND, _GAUSSIAN, _OCCLUSION = (
    0,
    2,
    4,
    5,
)  # MaskKind of csrc/distill_loss/pixel_weights_math.h


@dataclasses.dataclass(frozen=True)
class Perspective:
    """Perspective Gaussian, A exp(-((x - x*) / (w sigma_x))^2 - ((y - y*) / (h sigma_y))^2), at cell centres.

    w and h are the width and height of the image without padding.

    Attributes:
        amplitude: A; 0.3 is the paper's best.
        sigma: sigma_x in image widths and sigma_y in image heights; 0.7 is the paper's best.
        center: x* / w and y* / h.
    """

    amplitude: float = 0.3
    sigma: tuple[float, float] = (0.7, 0.7)
    center: tuple[float, float] = (0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Occlusion:
    """Objects that lower the weight of the cells in their 2D boxes; see :func:`pack_boxes`.

    Attributes:
        boxes: (N, 4) x1, y1, x2, y2 in pixels; the boxes of a batch, sample after sample.
        splits: (B + 1,) int64; sample b has the boxes ``splits[b]`` to ``splits[b + 1]``.
        depths: (N,) metres.
        near_depth: depth in metres from which on objects lower nothing.
    """

    boxes: Tensor
    splits: Tensor
    depths: Tensor
    near_depth: float


@dataclasses.dataclass(frozen=True)
class BoxMask:
    """Mask drawn from boxes; see :mod:`bevkd2.ops.pixel_weights` for the kinds, and :func:`pack_boxes`.

    Attributes:
        boxes: (N, 4) x1, y1, x2, y2, or (N, 5) x, y, length, width, angle (radians from +x to +y), in pixels
            of the image or metres of the grid; the boxes of a batch, sample after sample.
        splits: (B + 1,) int64; sample b has the boxes ``splits[b]`` to ``splits[b + 1]``.
        kind: ``"foreground"``, ``"background"`` or ``"gaussian"``.
        normalize: give every object, or the whole background, the same total weight; not for ``"gaussian"``.
        alpha: width of ``"gaussian"``; with 1 the sides of the box are at 3 sigma. TTFNet uses 0.54.
    """

    boxes: Tensor
    splits: Tensor
    kind: Literal["foreground", "background", "gaussian"] = "foreground"
    normalize: bool = False
    alpha: float = 1.0


@dataclasses.dataclass(frozen=True)
class PixelWeights:
    """Result of :func:`draw_weights` for L levels and B samples.

    Attributes:
        maps: (B, cells of all levels) float32, level after level.
        sums: (L, B) float32, the sum of a level's weights.
        cells: (L, B) float32, the number of a level's cells in the image: N_l of depth-guided distillation,
            Eq. 4.
        level_shapes: rows and columns of each level.
    """

    maps: Tensor
    sums: Tensor
    cells: Tensor
    level_shapes: tuple[tuple[int, int], ...]

    def levels(self) -> list[Tensor]:
        """Returns the weights (B, rows, columns) of every level, views of ``maps``."""
        sizes = [rows * columns for rows, columns in self.level_shapes]
        parts = zip(self.maps.split(sizes, 1), self.level_shapes, strict=True)
        return [part.unflatten(1, shape) for part, shape in parts]


def pack_boxes(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Concatenates the boxes of a batch.

    Args:
        boxes: B tensors (n, ..).

    Returns:
        boxes: (N, ..).
        splits: (B + 1,) int64; sample b has the rows ``splits[b]`` to ``splits[b + 1]``.

    Raises:
        ValueError: an empty list.
    """
    if not boxes:
        raise ValueError(
            "pack_boxes: boxes is an empty list; expected one tensor per sample, (0, 4) if it has no boxes"
        )
    ends = [0, *itertools.accumulate(len(part) for part in boxes)]
    splits = torch.tensor(ends, dtype=torch.int64)
    return torch.cat(list(boxes)), splits.to(boxes[0].device, non_blocking=True)


def draw_weights(
    level_shapes: Sequence[tuple[int, int]],
    *,
    strides: Sequence[int] | None = None,
    grid_range: tuple[float, float, float, float] | None = None,
    image_sizes: Tensor | None = None,
    perspective: Perspective | None = None,
    occlusion: Occlusion | None = None,
    boxes: Sequence[BoxMask] = (),
) -> PixelWeights:
    """Draws the weights of the cells of all levels of a batch.

    The weight of a cell is the product of the given factors; see :mod:`bevkd2.ops.pixel_weights`. Exactly
    one of ``strides`` and ``grid_range`` is given.

    Args:
        level_shapes: rows and columns of each level.
        strides: stride of each level in pixels, for levels of an image.
        grid_range: x_min, y_min, x_max, y_max in metres, for a BEV grid whose columns grow with x and rows
            with y; every level covers it.
        image_sizes: (B, 2) height and width in pixels before padding; the padding gets weight 0.
        perspective: perspective Gaussian; needs ``image_sizes``.
        occlusion: objects that lower the weights; needs ``strides``.
        boxes: masks.

    Returns:
        The weights, their sums and the numbers of content cells. They have no gradient.

    Raises:
        ValueError: shapes or devices that do not fit, or nothing to draw from.
        RuntimeError: CUDA tensors, but the CUDA ops are not built; or splits that do not fit the boxes.
    """
    shapes = tuple(
        grid_shape(_OP, f"level_shapes of level {level}", shape) for level, shape in enumerate(level_shapes)
    )
    if strides is not None:
        strides = [integer(_OP, "strides", stride) for stride in strides]
    _check(shapes, strides, grid_range, image_sizes, perspective, occlusion, boxes)
    masks = [_mask_arguments(mask) for mask in boxes]
    if occlusion is not None:
        packed = torch.cat([occlusion.boxes.float(), occlusion.depths[:, None].float()], 1)
        masks.append((packed, occlusion.splits, _OCCLUSION, occlusion.near_depth))
    like = masks[0][1] if image_sizes is None else image_sizes
    batch = len(like) - 1 if image_sizes is None else len(like)
    check_device(_OP, "image_sizes" if image_sizes is not None else "boxes", like)
    numbers = [] if perspective is None else [perspective.amplitude, *perspective.sigma, *perspective.center]
    maps, sums, cells = torch.ops.bevkd2.draw_weights(
        None if image_sizes is None else image_sizes.detach().float().contiguous(),
        batch,
        [size for shape in shapes for size in shape],
        _geometry(shapes, strides, grid_range),
        [float(number) for number in numbers],
        [packed.detach().float().contiguous() for packed, _, _, _ in masks],
        [splits.contiguous() for _, splits, _, _ in masks],
        [kind for _, _, kind, _ in masks],
        [float(parameter) for _, _, _, parameter in masks],
    )
    return PixelWeights(maps, sums, cells, shapes)


def _mask_arguments(mask: BoxMask) -> tuple[Tensor, Tensor, int, float]:
    """Returns boxes as x, y, length, width, angle, their splits, the kind and its parameter."""
    packed = mask.boxes
    if packed.shape[1] == 4:
        first, second = packed[:, :2], packed[:, 2:]
        packed = torch.cat([(first + second) / 2, second - first, torch.zeros_like(packed[:, :1])], 1)
    kind = {"foreground": _FOREGROUND, "background": _BACKGROUND, "gaussian": _GAUSSIAN}[mask.kind]
    return packed, mask.splits, kind + mask.normalize, mask.alpha


def _geometry(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int] | None,
    grid_range: tuple[float, float, float, float] | None,
) -> list[float]:
    """Returns left, top, step_x, step_y of every level."""
    if strides is not None:
        return [number for stride in strides for number in (0.0, 0.0, float(stride), float(stride))]
    assert grid_range is not None
    x_min, y_min, x_max, y_max = (float(number) for number in grid_range)
    geometry = []
    for rows, columns in shapes:
        geometry += [x_min, y_min, (x_max - x_min) / max(1, columns), (y_max - y_min) / max(1, rows)]
    return geometry


def _check(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int] | None,
    grid_range: tuple[float, float, float, float] | None,
    image_sizes: Tensor | None,
    perspective: Perspective | None,
    occlusion: Occlusion | None,
    boxes: Sequence[BoxMask],
) -> None:
    """Checks the arguments of :func:`draw_weights`."""
    if not shapes:
        raise ValueError(f"{_OP}: level_shapes is empty; expected (rows, columns) of at least one level")
    if (strides is None) == (grid_range is None):
        raise ValueError(f"{_OP}: give strides (levels of an image) or grid_range (a BEV grid), and only one")
    if strides is not None and (len(strides) != len(shapes) or min(strides) <= 0):
        raise ValueError(f"{_OP}: strides are {list(strides)}; expected {len(shapes)} above 0, one per level")
    if grid_range is not None and not (grid_range[0] < grid_range[2] and grid_range[1] < grid_range[3]):
        raise ValueError(f"{_OP}: grid_range is {grid_range}; expected x_min, y_min, x_max, y_max, ascending")
    if image_sizes is None and occlusion is None and not boxes:
        raise ValueError(f"{_OP}: nothing to draw from; give image_sizes, occlusion or boxes")
    if strides is None and (image_sizes is not None or occlusion is not None):
        raise ValueError(f"{_OP}: image_sizes and occlusion belong to an image; give strides, not grid_range")
    if perspective is not None and image_sizes is None:
        raise ValueError(f"{_OP}: perspective needs image_sizes")
    if perspective is not None and not min(perspective.sigma) > 0:
        raise ValueError(f"{_OP}: perspective.sigma is {perspective.sigma}; expected two numbers above 0")
    if image_sizes is not None and (image_sizes.dim() != 2 or image_sizes.shape[1] != 2):
        raise ValueError(f"{_OP}: image_sizes is {tuple(image_sizes.shape)}; expected (B, 2) height, width")
    drawn: list[BoxMask | Occlusion] = [*boxes, *([] if occlusion is None else [occlusion])]
    samples = (drawn[0].splits.shape[:1].numel() - 1, drawn[0].boxes.device) if drawn else (0, None)
    if image_sizes is not None:
        samples = (len(image_sizes), image_sizes.device)
    if occlusion is not None:
        _check_boxes("occlusion", occlusion.boxes, occlusion.splits, (4,), *samples)
        depths, near_depth = occlusion.depths, occlusion.near_depth
        if depths.shape != occlusion.boxes.shape[:1] or depths.device != occlusion.boxes.device:
            raise ValueError(
                f"{_OP}: depths of occlusion are {tuple(depths.shape)} on {depths.device}; expected "
                f"({len(occlusion.boxes)},) on {occlusion.boxes.device}"
            )
        if not near_depth > 0:
            raise ValueError(f"{_OP}: near_depth of occlusion is {near_depth}; expected a number above 0")
    for mask in boxes:
        _check_mask(mask, *samples)


def _check_mask(mask: BoxMask, batch: int, device: torch.device | None) -> None:
    """Checks the boxes, the kind and the parameters of a mask."""
    _check_boxes("boxes", mask.boxes, mask.splits, (4, 5), batch, device)
    if mask.kind not in ("foreground", "background", "gaussian"):
        raise ValueError(f"{_OP}: kind is {mask.kind!r}; expected foreground, background or gaussian")
    if not isinstance(mask.normalize, bool):
        raise ValueError(f"{_OP}: normalize is {mask.normalize!r}; expected True or False")
    if mask.kind == "gaussian" and (mask.normalize or not mask.alpha > 0):
        raise ValueError(
            f"{_OP}: a gaussian mask with normalize={mask.normalize}, alpha={mask.alpha}; expected "
            "normalize=False and alpha above 0"
        )


def _check_boxes(
    name: str, boxes: Tensor, splits: Tensor, widths: tuple[int, ...], batch: int, device: torch.device | None
) -> None:
    """Checks shapes, samples and devices of packed boxes."""
    if boxes.dim() != 2 or boxes.shape[1] not in widths:
        raise ValueError(
            f"{_OP}: {name} are {tuple(boxes.shape)}; expected (N, {' or '.join(map(str, widths))})"
        )
    if splits.dim() != 1 or splits.dtype != torch.int64 or len(splits) < 1 or splits.device != boxes.device:
        raise ValueError(
            f"{_OP}: splits of {name} are {tuple(splits.shape)} {splits.dtype} on {splits.device}; expected "
            f"(B + 1,) int64 on {boxes.device}, as pack_boxes makes them"
        )
    if len(splits) != batch + 1 or boxes.device != device:
        raise ValueError(
            f"{_OP}: {name} of {len(splits) - 1} samples on {boxes.device}; expected {batch} on {device}, as "
            "image_sizes have, or the first boxes where there are none"
        )


@torch.library.register_fake("bevkd2::draw_weights")
def _fake(
    image_sizes: Tensor | None,
    batch: int,
    shapes: list[int],
    geometry: list[float],
    perspective: list[float],
    boxes: list[Tensor],
    splits: list[Tensor],
    kinds: list[int],
    parameters: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    like = boxes[0] if image_sizes is None else image_sizes
    levels = len(shapes) // 2
    cells = sum(shapes[2 * level] * shapes[2 * level + 1] for level in range(levels))
    return like.new_empty(batch, cells), like.new_empty(levels, batch), like.new_empty(levels, batch)
