"""Dense auxiliary supervision in training: centre heat maps on the bird's-eye view and in the images.

The heat maps and their loss are CenterNet's (Zhou et al., arXiv 1904.07850, Eq. 1). BEVFormer's set losses
alone need long schedules; heat maps supervise the features densely from the first step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from bevkd2.modeling.bev.inputs import BEVTargets
from bevkd2.modeling.heatmaps import draw_heatmap, gaussian_radius, heatmap_loss
from bevkd2.structures import Boxes3D, project_points

BEV_OVERLAP = 0.1  # CenterPoint's
IMAGE_OVERLAP = 0.7  # CenterNet's


@dataclasses.dataclass(frozen=True)
class HeatmapWeights:
    """Weights of the auxiliary losses; a head whose weight is 0 is not built."""

    bev: float = 0.0
    image: float = 0.0


def bev_heatmap_targets(
    boxes: Boxes3D, labels: Tensor, num_classes: int, shape: tuple[int, int], pc_range: Sequence[float]
) -> tuple[Tensor, int]:
    """Draws the heat map of one sample's box centres on the bird's-eye view.

    Args:
        boxes: n boxes.
        labels: (n,) int64.
        num_classes: K.
        shape: (H, W) of the grid.
        pc_range: x0, y0, z0, x1, y1, z1 in metres; boxes whose centre is outside are not drawn.

    Returns:
        (K, H, W), and how many centres are inside the range.
    """
    low, high = boxes.tensor.new_tensor(pc_range)[[0, 1, 3, 4]].chunk(2)
    size = boxes.tensor.new_tensor([shape[1], shape[0]])
    cells_per_metre = size / (high - low)
    centers = (boxes.center[:, :2] - low) * cells_per_metre
    keep = ((centers >= 0) & (centers < size)).all(1).nonzero()[:, 0]  # waits for the device, once
    extent = boxes.size[keep, :2] * cells_per_metre.mean()
    radii = gaussian_radius(extent[:, 0], extent[:, 1], BEV_OVERLAP)
    return draw_heatmap(centers[keep], radii, labels[keep], num_classes, shape), len(keep)


def image_heatmap_targets(
    boxes: Boxes3D,
    labels: Tensor,
    lidar2img: Tensor,
    image_sizes: Tensor,
    num_classes: int,
    shape: tuple[int, int],
    stride: int,
) -> tuple[Tensor, int]:
    """Draws the heat maps of the projected box centres in the cameras of one sample.

    Args:
        boxes: of the sample.
        labels: (n,) int64.
        lidar2img: (N, 4, 4) per camera.
        image_sizes: (N, 2) height and width in pixels before padding.
        num_classes: K.
        shape: (h, w) of a map.
        stride: in pixels.

    Returns:
        (N, K, h, w), and how many centres are in the images.
    """
    limits = image_sizes.flip(1)
    centers, depths = project_points(boxes.center, lidar2img)
    visible = ((centers >= 0) & (centers < limits[:, None])).all(2) & (depths > 0.1)
    cameras, objects = visible.nonzero(as_tuple=True)
    corners, _ = project_points(boxes.corners()[objects], lidar2img[cameras])
    corners = corners.minimum(limits[cameras, None]).clamp(min=0) / stride
    extent = (corners.amax(1) - corners.amin(1)).clamp(min=1)
    radii = gaussian_radius(extent[:, 1], extent[:, 0], IMAGE_OVERLAP)
    planes = cameras * num_classes + labels[objects]
    cells = centers[cameras, objects] / stride
    maps = draw_heatmap(cells, radii, planes, len(lidar2img) * num_classes, shape)
    return maps.unflatten(0, (-1, num_classes)), len(objects)


def bev_heatmap_loss(logits: Tensor, targets: BEVTargets, pc_range: Sequence[float]) -> Tensor:
    """Computes the loss of the BEV head, by :func:`heatmap_loss`.

    Args:
        logits: (B, K, H, W) before the sigmoid.
        targets: of the B samples.
        pc_range: x0, y0, z0, x1, y1, z1 of the grid in metres.

    Returns:
        A float32 scalar.
    """
    shape = (logits.shape[2], logits.shape[3])
    maps = [
        bev_heatmap_targets(boxes, labels, logits.shape[1], shape, pc_range)
        for boxes, labels in zip(targets.boxes, targets.labels, strict=True)
    ]
    return heatmap_loss(logits, torch.stack([m for m, _ in maps]), sum(count for _, count in maps))


def image_heatmap_loss(logits: Tensor, targets: BEVTargets, stride: int) -> Tensor:
    """Computes the loss of the image head, by :func:`heatmap_loss`.

    Args:
        logits: (B*N, K, h, w) before the sigmoid.
        targets: of the B samples, with their cameras.
        stride: of the features, in pixels.

    Returns:
        A float32 scalar.
    """
    shape = (logits.shape[2], logits.shape[3])
    with torch.autocast(logits.device.type, enabled=False):  # a projection in 16 bits misses by pixels
        samples = zip(targets.boxes, targets.labels, targets.lidar2img, targets.image_sizes, strict=True)
        maps = [image_heatmap_targets(*sample, logits.shape[1], shape, stride) for sample in samples]
    return heatmap_loss(logits, torch.cat([m for m, _ in maps]), sum(count for _, count in maps))
