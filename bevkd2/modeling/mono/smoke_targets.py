"""What SMOKE's heat map and box codes are compared with (Liu et al., arXiv 2002.10111, section 3.2)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from bevkd2.modeling.heatmap_heads import draw_heatmap, gaussian_radius
from bevkd2.modeling.mono.inputs import MonoTargets
from bevkd2.structures import CameraBoxes3D

BACKGROUND = -1


@dataclasses.dataclass
class SmokeObjects:
    """The P objects of a batch whose projected centre lies inside their image, image by image.

    Others teach nothing, as published: no cell stands for them. So cars that the border cuts are missed.
    """

    rows: Tensor
    """(P,) int64: which image."""
    indices: Tensor
    """(P,) int64: which object of its image."""
    cells: Tensor
    """(P, 2) int64 x, y of the cell that the projected centre lies in."""
    labels: Tensor
    """(P,) int64."""
    boxes: CameraBoxes3D
    """P annotated boxes."""
    boxes2d: Tensor
    """(P, 4) x1, y1, x2, y2 in pixels of the network's input."""
    teaches_boxes: Tensor
    """(P,) bool: False where the image was shifted or scaled, which changes what a depth looks like."""


def objects_of(targets: MonoTargets, stride: int) -> SmokeObjects:
    """Picks the objects that have a cell.

    Args:
        targets: annotations of a batch.
        stride: pixels to a cell.
    """
    inside = [
        ((centers >= 0) & (centers < size.flip(0))).all(dim=1).nonzero()[:, 0]
        for centers, size in zip(targets.centers2d, targets.image_sizes, strict=True)
    ]
    counts = torch.tensor([len(kept) for kept in inside], device=targets.cam2img.device)
    rows = torch.arange(len(inside), device=counts.device).repeat_interleave(counts)
    centers = torch.cat([c[kept] for c, kept in zip(targets.centers2d, inside, strict=True)])
    return SmokeObjects(
        rows=rows,
        indices=torch.cat(inside),
        cells=(centers / stride).long(),
        labels=torch.cat([labels[kept] for labels, kept in zip(targets.labels, inside, strict=True)]),
        boxes=CameraBoxes3D(
            torch.cat([b.tensor[kept, :7] for b, kept in zip(targets.boxes, inside, strict=True)])
        ),
        boxes2d=torch.cat([boxes[kept] for boxes, kept in zip(targets.boxes2d, inside, strict=True)]),
        teaches_boxes=~targets.affine_augmented[rows],
    )


def heatmap_targets(
    objects: SmokeObjects,
    num_images: int,
    num_classes: int,
    shape: tuple[int, int],
    stride: int,
    overlap: float,
) -> Tensor:
    """CenterNet's Gaussians, cut off at their radius.

    Args:
        objects: of a batch.
        num_images: B.
        num_classes: K.
        shape: (h, w) of the map.
        stride: pixels to a cell.
        overlap: a 2D box whose corners move by the radius still overlaps itself by so much.

    Returns:
        (B, K, h, w) in [0, 1], 1 in the cells of the centres.
    """
    width, height = ((objects.boxes2d[:, 2:] - objects.boxes2d[:, :2]) / stride).unbind(dim=1)
    radii = gaussian_radius(height, width, overlap).clamp(min=0).floor()
    # One map an image and class: those of image b are the classes b * K to (b + 1) * K - 1.
    planes = objects.rows * num_classes + objects.labels
    maps = draw_heatmap(objects.cells.float(), radii, planes, num_images * num_classes, shape, windowed=True)
    return maps.unflatten(0, (num_images, num_classes))


def assign_cells(
    objects: SmokeObjects, depths: list[Tensor], num_images: int, shape: tuple[int, int]
) -> Tensor:
    """Which object a cell stands for; the nearest where several share it.

    Args:
        objects: of a batch.
        depths: (n,) metres an image.
        num_images: B.
        shape: (h, w) of the map.

    Returns:
        (B, h * w) int64 index of the object in its image's lists, -1 for background.
    """
    height, width = shape
    assigned = torch.full((num_images, height * width), BACKGROUND, device=objects.rows.device)
    places = (objects.cells[:, 1] * width + objects.cells[:, 0]).tolist()
    entries = list(zip(objects.rows.tolist(), places, objects.indices.tolist(), strict=True))
    for row, place, index in sorted(entries, key=lambda entry: -float(depths[entry[0]][entry[2]])):
        assigned[row, place] = index
    return assigned
