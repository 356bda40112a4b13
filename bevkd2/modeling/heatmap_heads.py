"""Dense auxiliary supervision in training: centre heat maps on the bird's-eye view and in the images.

The heat maps and their loss are CenterNet's (Zhou et al., arXiv 1904.07850, Eq. 1). BEVFormer's set losses
alone need long schedules; heat maps teach the features where objects are from the first step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevkd2.modeling.inputs import BEVTargets
from bevkd2.modeling.losses import average_over_ranks
from bevkd2.structures import Boxes3D, project_points

BEV_OVERLAP = 0.1  # CenterPoint's
IMAGE_OVERLAP = 0.7  # CenterNet's
MIN_RADIUS = 1.0  # cells


class HeatmapHead(nn.Sequential):
    """Two convolutions to one logit a class and cell."""

    def __init__(self, channels: int, num_classes: int) -> None:
        """Make the layers.

        Args:
            channels: of the features.
            num_classes: K.
        """
        first = nn.Conv2d(channels, channels, 3, padding=1)
        last = nn.Conv2d(channels, num_classes, 1)
        super().__init__(first, nn.ReLU(), last)
        assert last.bias is not None
        nn.init.constant_(last.bias, -2.19)  # prior probability 0.1, as CenterNet


def gaussian_radius(height: Tensor, width: Tensor, min_overlap: float) -> Tensor:
    """How far both corners of a box may move for it still to overlap the box by ``min_overlap``.

    The least of three cases (both corners inwards, both outwards, one each): CornerNet, section 3.2.

    Args:
        height: (n,) cells.
        width: (n,) cells.
        min_overlap: intersection over union.

    Returns:
        (n,) cells.
    """
    total, area = height + width, height * width
    shifted = total - (total**2 - 4 * area * (1 - min_overlap) / (1 + min_overlap)).clamp(min=0).sqrt()
    inner = total - (total**2 - 4 * area * (1 - min_overlap)).clamp(min=0).sqrt()
    outer = (total**2 + 4 * area * (1 - min_overlap) / min_overlap).sqrt() - total
    return torch.stack([shifted / 2, inner / 4, outer / 4]).amin(0)


def draw_heatmap(
    centers: Tensor,
    radii: Tensor,
    labels: Tensor,
    num_classes: int,
    shape: tuple[int, int],
    windowed: bool = False,
) -> Tensor:
    """Gaussians around centres; the larger one wins where two of a class overlap.

    Args:
        centers: (n, 2) x, y in cells, all inside the map.
        radii: (n,) cells.
        labels: (n,) int64.
        num_classes: K.
        shape: (H, W).
        windowed: 0 beyond the radius, as CenterNet's code draws them, and the radius may be 0; else a
            Gaussian reaches on, and its radius is MIN_RADIUS at least.

    Returns:
        (K, H, W) in [0, 1], exactly 1 in the cells of the centres.
    """
    height, width = shape
    x = torch.arange(width, device=centers.device)
    y = torch.arange(height, device=centers.device)
    radii = (radii if windowed else radii.clamp(min=MIN_RADIUS))[:, None]
    sigma = (2 * radii + 1) / 6
    cells = centers.floor()
    from_x, from_y = x - cells[:, :1], y - cells[:, 1:]
    along_x, along_y = (torch.exp(-(d**2) / (2 * sigma**2)) for d in (from_x, from_y))
    if windowed:
        along_x, along_y = along_x * (from_x.abs() <= radii), along_y * (from_y.abs() <= radii)
    bumps = (along_y[:, :, None] * along_x[:, None, :]).flatten(1)
    heatmap = centers.new_zeros(num_classes, height * width)
    heatmap.scatter_reduce_(0, labels[:, None].expand_as(bumps), bumps, "amax")
    return heatmap.unflatten(1, shape)


def bev_heatmap_targets(
    boxes: Boxes3D, labels: Tensor, num_classes: int, shape: tuple[int, int], pc_range: Sequence[float]
) -> tuple[Tensor, int]:
    """Heat map of one sample's box centres on the bird's-eye view.

    Returns:
        (K, H, W), and how many centres are inside the range.
    """
    low, high = boxes.tensor.new_tensor(pc_range)[[0, 1, 3, 4]].chunk(2)
    size = boxes.tensor.new_tensor([shape[1], shape[0]])
    cells_per_metre = size / (high - low)
    centers = (boxes.center[:, :2] - low) * cells_per_metre
    keep = ((centers >= 0) & (centers < size)).all(1)
    extent = boxes.size[keep, :2] * cells_per_metre.mean()
    radii = gaussian_radius(extent[:, 0], extent[:, 1], BEV_OVERLAP)
    return draw_heatmap(centers[keep], radii, labels[keep], num_classes, shape), int(keep.sum())


def image_heatmap_targets(
    boxes: Boxes3D,
    labels: Tensor,
    lidar2img: Tensor,
    image_size: Tensor,
    num_classes: int,
    shape: tuple[int, int],
    stride: int,
) -> tuple[Tensor, int]:
    """Heat map of the projected box centres in one camera.

    Args:
        boxes: of the sample.
        labels: (n,) int64.
        lidar2img: (4, 4).
        image_size: (2,) height and width in pixels before padding.
        num_classes: K.
        shape: (h, w) of the map.
        stride: pixels a cell.

    Returns:
        (K, h, w), and how many centres are in the image.
    """
    limits = image_size.flip(0)
    center, depth = project_points(boxes.center[None], lidar2img[None])
    center, depth = center[0], depth[0]
    keep = ((center >= 0) & (center < limits)).all(1) & (depth > 0.1)
    corners, _ = project_points(boxes.corners()[keep], lidar2img[None])
    corners = corners.minimum(limits).clamp(min=0) / stride
    extent = (corners.amax(1) - corners.amin(1)).clamp(min=1)
    radii = gaussian_radius(extent[:, 1], extent[:, 0], IMAGE_OVERLAP)
    return draw_heatmap(center[keep] / stride, radii, labels[keep], num_classes, shape), int(keep.sum())


def heatmap_loss(logits: Tensor, target: Tensor, num_centers: int | Tensor) -> Tensor:
    """Penalty-reduced pixel-wise focal loss (CenterNet, Eq. 1), alpha 2, beta 4.

    Args:
        logits: (..., K, H, W).
        target: the same shape, 1 at centres.
        num_centers: divides the sum, averaged over the ranks, at least 1.

    Returns:
        A float32 scalar.
    """
    logits = logits.float()
    p = logits.sigmoid()
    positive = F.logsigmoid(logits) * (1 - p) ** 2
    negative = F.logsigmoid(-logits) * p**2 * (1 - target) ** 4
    total = -torch.where(target == 1, positive, negative).sum()
    return total / average_over_ranks(num_centers, logits.device)


def bev_heatmap_loss(logits: Tensor, targets: BEVTargets, pc_range: Sequence[float]) -> Tensor:
    """Loss of the BEV head, (B, K, H, W)."""
    shape = (logits.shape[2], logits.shape[3])
    maps = [
        bev_heatmap_targets(boxes, labels, logits.shape[1], shape, pc_range)
        for boxes, labels in zip(targets.boxes, targets.labels, strict=True)
    ]
    return heatmap_loss(logits, torch.stack([m for m, _ in maps]), sum(count for _, count in maps))


def image_heatmap_loss(logits: Tensor, targets: BEVTargets, stride: int) -> Tensor:
    """Loss of the image head, (B*N, K, h, w) with ``stride`` pixels a cell."""
    shape = (logits.shape[2], logits.shape[3])
    with torch.autocast(logits.device.type, enabled=False):  # a projection in 16 bits misses by pixels
        maps = [
            image_heatmap_targets(
                targets.boxes[sample],
                targets.labels[sample],
                targets.lidar2img[sample, camera],
                targets.image_sizes[sample, camera],
                logits.shape[1],
                shape,
                stride,
            )
            for sample in range(len(targets.boxes))
            for camera in range(targets.lidar2img.shape[1])
        ]
    return heatmap_loss(logits, torch.stack([m for m, _ in maps]), sum(count for _, count in maps))
