"""Targets of SMOKE's heat map and box codes (Liu et al., arXiv 2002.10111, section 3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from bevkd2.modeling.heatmaps import draw_heatmap, gaussian_radius
from bevkd2.modeling.mono.grid import BACKGROUND
from bevkd2.modeling.mono.inputs import MonoTargets
from bevkd2.structures import CameraBoxes3D


@dataclasses.dataclass
class SmokeObjects:
    """The P objects of a batch whose projected centre lies inside their image, image by image.

    Other objects are not used, as published: they have no cell. So cars that the border cuts are missed.
    """

    rows: Tensor
    """(P,) int64: index of the image."""
    indices: Tensor
    """(P,) int64: index of the object in its image."""
    cells: Tensor
    """(P, 2) int64 x, y of the cell that the projected centre lies in."""
    labels: Tensor
    """(P,) int64."""
    boxes: CameraBoxes3D
    """P annotated boxes."""
    boxes2d: Tensor
    """(P, 4) x1, y1, x2, y2 in pixels of the network's input."""
    depths: Tensor
    """(P,) metres along the optical axis."""
    box_loss_mask: Tensor
    """(P,) bool: False where the image was shifted or scaled, which changes the apparent depth."""


def objects_of(targets: MonoTargets, stride: int) -> SmokeObjects:
    """Selects the objects that have a cell.

    Args:
        targets: annotations of a batch.
        stride: of the map in pixels.
    """
    device, counts = targets.cam2img.device, [len(labels) for labels in targets.labels]
    rows = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(device)
    indices = torch.cat([torch.arange(count) for count in counts]).to(device)
    centers = torch.cat(targets.centers2d)
    inside = (centers >= 0) & (centers < targets.image_sizes[rows].flip(1))
    kept = inside.all(dim=1).nonzero()[:, 0]  # one wait for the device instead of one per image

    def pick(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))[kept]

    return SmokeObjects(
        rows=rows[kept],
        indices=indices[kept],
        cells=(pick(targets.centers2d) / stride).long(),
        labels=pick(targets.labels),
        boxes=CameraBoxes3D(pick([boxes.tensor[:, :7] for boxes in targets.boxes])),
        boxes2d=pick(targets.boxes2d),
        depths=pick(targets.depths),
        box_loss_mask=~targets.affine_augmented[rows[kept]],
    )


def heatmap_targets(
    objects: SmokeObjects,
    num_images: int,
    num_classes: int,
    shape: tuple[int, int],
    stride: int,
    overlap: float,
) -> Tensor:
    """Draws CenterNet's Gaussians, cut off at their radius.

    Args:
        objects: of a batch.
        num_images: B.
        num_classes: K.
        shape: (h, w) of the map.
        stride: of the map in pixels.
        overlap: a 2D box whose corners move by the radius still overlaps itself by so much.

    Returns:
        (B, K, h, w) in [0, 1], 1 in the cells of the centres.
    """
    width, height = ((objects.boxes2d[:, 2:] - objects.boxes2d[:, :2]) / stride).unbind(dim=1)
    radii = gaussian_radius(height, width, overlap).clamp(min=0).floor()
    # One map per image and class: those of image b are the classes b * K to (b + 1) * K - 1.
    planes = objects.rows * num_classes + objects.labels
    maps = draw_heatmap(objects.cells.float(), radii, planes, num_images * num_classes, shape, windowed=True)
    heatmaps: Tensor = maps.unflatten(0, (num_images, num_classes))
    return heatmaps


def assign_cells(objects: SmokeObjects, num_images: int, shape: tuple[int, int]) -> Tensor:
    """Assigns to each cell its object: the nearest of several, and of equally near ones the first.

    Args:
        objects: of a batch.
        num_images: B.
        shape: (h, w) of the map.

    Returns:
        (B, h * w) int64 index of the object in its image's lists, -1 for background.
    """
    height, width = shape
    places = (objects.rows * height + objects.cells[:, 1]) * width + objects.cells[:, 0]
    by_depth = objects.depths.argsort(stable=True)
    ranks = by_depth.argsort()
    no_object = len(ranks)
    nearest = places.new_full((num_images * height * width,), no_object)
    nearest.scatter_reduce_(0, places, ranks, "amin")
    indices = torch.cat([objects.indices[by_depth], by_depth.new_full((1,), BACKGROUND)])
    cells: Tensor = indices[nearest].unflatten(0, (num_images, height * width))
    return cells
