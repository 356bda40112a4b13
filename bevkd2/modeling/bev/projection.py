"""From cells of the bird's-eye view to camera pixels: which cameras see a cell, and where."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from bevkd2.structures import project_points


@dataclasses.dataclass
class VisiblePairs:
    """The (camera, cell) pairs to attend to, sorted by cell; made once a frame, read by every encoder layer.

    B samples, N cameras, Q cells, Z reference points in a pillar, R visible pairs.
    """

    reference_points: Tensor
    """(R, Z, 2) float32: x, y as fractions of the padded image. Points that the camera does not see are
    among them where another point of the same pillar is seen."""
    row_splits: Tensor
    """(B*Q + 1,) int64: pairs of cell b*Q + q are ``row_splits[b*Q + q] : row_splits[b*Q + q + 1]``."""
    row_value: Tensor
    """(R,) int64: b*N + n, the camera of every pair."""
    bev_mask: Tensor
    """(B, N, Q) bool: the camera sees at least one point of the pillar."""


def bev_reference_points(shape: tuple[int, int], device: torch.device) -> Tensor:
    """Returns (H*W, 2) float32: x, y of the cell centres as fractions of the grid, row-major."""
    height, width = shape
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)


def pillar_points(
    shape: tuple[int, int], pc_range: Sequence[float], num_points: int, device: torch.device
) -> Tensor:
    """The reference points of every cell's pillar (BEVFormer, section 3.3).

    Heights are spread evenly from 0.5 m above the range's floor to 0.5 m below its ceiling.

    Args:
        shape: rows (y) and columns (x) of the grid.
        pc_range: x0, y0, z0, x1, y1, z1 in metres.
        num_points: Z.
        device: where to make them.

    Returns:
        (H*W, Z, 3) float32, metres in the LIDAR_TOP frame.
    """
    low = torch.tensor(pc_range[:3], device=device, dtype=torch.float32)
    extent = torch.tensor(pc_range[3:], device=device, dtype=torch.float32) - low
    depth = float(pc_range[5]) - float(pc_range[2])
    z = torch.linspace(0.5, depth - 0.5, num_points, device=device, dtype=torch.float32) / depth
    xy = bev_reference_points(shape, device)
    points = torch.cat(
        [xy[:, None].expand(-1, num_points, -1), z[None, :, None].expand(len(xy), -1, -1)], dim=-1
    )
    return points * extent + low


@torch.no_grad()
def project_pillars(
    points: Tensor, lidar2img: Tensor, visible_sizes: Tensor, padded_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Projects pillar points into every camera, in float32 whatever autocast does.

    Args:
        points: (Q, Z, 3) metres.
        lidar2img: (B, N, 4, 4) metres to pixels.
        visible_sizes: (B, N, 2) height and width in pixels of the area that counts as seen.
        padded_size: height and width in pixels of what the backbone read.

    Returns:
        reference_points: (B, N, Q, Z, 2) x, y as fractions of the padded image; meaningless where the depth
            is not positive.
        visible: (B, N, Q, Z) bool: in front of the camera and strictly inside the visible area.
    """
    num_cells, num_points = points.shape[:2]
    with torch.autocast(points.device.type, enabled=False):
        uv, depth = project_points(points.reshape(1, 1, -1, 3).float(), lidar2img.float())
    uv = uv.unflatten(2, (num_cells, num_points))
    depth = depth.unflatten(2, (num_cells, num_points))
    limits = visible_sizes.flip(-1)[:, :, None, None]  # (width, height), as uv
    inside = ((uv > 0) & (uv < limits)).all(-1)
    scale = uv.new_tensor([padded_size[1], padded_size[0]])
    return uv / scale, inside & (depth > 1e-5)


def find_visible_pairs(reference_points: Tensor, visible: Tensor) -> VisiblePairs:
    """Lists the (camera, cell) pairs of a batch, each sample by its own calibration.

    Args:
        reference_points: (B, N, Q, Z, 2) of :func:`project_pillars`.
        visible: (B, N, Q, Z) bool of :func:`project_pillars`.
    """
    num_cameras = visible.shape[1]
    bev_mask = visible.any(-1)
    by_cell = bev_mask.transpose(1, 2)  # (B, Q, N): nonzero then sorts by sample, cell, camera
    sample, cell, camera = by_cell.nonzero(as_tuple=True)
    counts = by_cell.sum(-1).flatten()
    return VisiblePairs(
        reference_points=reference_points[sample, camera, cell].contiguous(),
        row_splits=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        row_value=sample * num_cameras + camera,
        bev_mask=bev_mask,
    )
