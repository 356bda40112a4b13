"""Centre heat maps: head, targets and loss of CenterNet (Zhou et al., arXiv 1904.07850, Eq. 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevkd2.modeling.losses import average_over_ranks

MIN_RADIUS = 1.0  # cells


class HeatmapHead(nn.Sequential):
    """Two convolutions to one logit per class and cell."""

    def __init__(self, channels: int, num_classes: int) -> None:
        """Makes the layers.

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
    """Computes how far both corners of a box may move while it overlaps the original by ``min_overlap``.

    The smallest of three cases (both corners inwards, both outwards, one each): CornerNet, section 3.2.

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
    """Draws Gaussians around centres; where two of a class overlap, the maximum is taken.

    Args:
        centers: (n, 2) x, y in cells, all inside the map.
        radii: (n,) cells.
        labels: (n,) int64.
        num_classes: K.
        shape: (H, W).
        windowed: Gaussians are 0 beyond the radius, as in CenterNet's code, and the radius may be 0; else
            they are not cut off, and the radius is MIN_RADIUS at least.

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
    drawn: Tensor = heatmap.unflatten(1, shape)
    return drawn


def heatmap_loss(logits: Tensor, target: Tensor, num_centers: int | Tensor) -> Tensor:
    """Computes the penalty-reduced pixel-wise focal loss (CenterNet, Eq. 1), alpha 2, beta 4.

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
