"""Dense auxiliary box heads in training, beside the heat maps; not in any paper (docs/demo.md).

The set losses regress global headings and velocities of a few matched queries, where they starve beside the
centres. These two heads ask the features themselves, at the objects' centres: the image features for what a
camera can see, the heading relative to the viewing ray, and the bird's-eye view for what the decoder needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bevkd2.modeling.bev.inputs import BEVTargets
from bevkd2.modeling.losses import average_over_ranks
from bevkd2.structures import Boxes3D, project_points

BEV_CHANNELS = 6
"""x, y from the middle of the cell (cells), sin, cos of the yaw, vx, vy (m/s). The yaw is relative to the ray
from the origin to the object where the decoder's is (MODEL.BEVFORMER.RAY_HEADING)."""
VELOCITY = slice(4, 6)
"""Where vx, vy are among them."""
IMAGE_CHANNELS = 6
"""sin, cos of the local yaw, log length, width, height (m), log of the metres that 100 pixels span there."""
BETA = 0.5
"""Of the smooth L1 loss, in the units of the channels."""
MIN_DEPTH = 0.1  # metres


@dataclasses.dataclass(frozen=True)
class DenseBoxWeights:
    """Weights of the auxiliary box losses; a head whose weight is 0 is not built."""

    bev: float = 0.0
    image: float = 0.0


class DenseBoxHead(nn.Sequential):
    """Two convolutions to the numbers of a box in every cell."""

    def __init__(self, channels: int, outputs: int) -> None:
        """Makes the layers.

        Args:
            channels: of the features.
            outputs: numbers in a cell.
        """
        first = nn.Conv2d(channels, channels, 3, padding=1)
        super().__init__(first, nn.ReLU(), nn.Conv2d(channels, outputs, 1))


def bev_box_targets(
    boxes: Boxes3D, shape: tuple[int, int], pc_range: Sequence[float], ray_heading: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns where the BEV head is read, and what it should say there.

    Args:
        boxes: n boxes with velocity.
        shape: (H, W) of the grid.
        pc_range: x0, y0, z0, x1, y1, z1 in metres.
        ray_heading: take yaws relative to the ray from the origin.

    Returns:
        cells: (m, 2) int64 row, column of the m centres that are in range.
        values: (m, BEV_CHANNELS).
    """
    low, high = boxes.tensor.new_tensor(pc_range)[[0, 1, 3, 4]].chunk(2)
    size = boxes.tensor.new_tensor([shape[1], shape[0]])
    centers = (boxes.center[:, :2] - low) * (size / (high - low))
    keep = ((centers >= 0) & (centers < size)).all(1)
    cells = centers[keep].floor()
    yaw = boxes.yaw[keep]
    if ray_heading:
        yaw = yaw - torch.atan2(boxes.center[keep, 1], boxes.center[keep, 0])
    offset = centers[keep] - cells - 0.5
    values = torch.cat([offset, torch.stack([yaw.sin(), yaw.cos()], dim=1), boxes.velocity[keep]], dim=1)
    return cells.long().flip(1), values


def image_box_targets(
    boxes: Boxes3D, lidar2img: Tensor, image_sizes: Tensor, stride: int
) -> tuple[Tensor, Tensor]:
    """Returns where the head is read in the images of one sample, and what it should say there.

    An object whose projected centre lies in the projected extent of a nearer one is left out, since what is
    seen there is the nearer one.

    Args:
        boxes: n boxes.
        lidar2img: (N, 4, 4) per camera.
        image_sizes: (N, 2) height and width in pixels before padding.
        stride: of the features, in pixels.

    Returns:
        cells: (m, 3) int64 camera, row, column.
        values: (m, IMAGE_CHANNELS).
    """
    centers, depths = project_points(boxes.center, lidar2img)
    visible = ((centers >= 0) & (centers < image_sizes.flip(1)[:, None])).all(2) & (depths > MIN_DEPTH)
    cameras, objects = visible.nonzero(as_tuple=True)
    center, depth = centers[cameras, objects], depths[cameras, objects]
    corners, corner_depth = project_points(boxes.corners()[objects], lidar2img[cameras])
    inside = ((center[:, None] >= corners.amin(1)) & (center[:, None] <= corners.amax(1))).all(2)
    nearer = (depth < depth[:, None]) & (corner_depth.amin(1) > MIN_DEPTH)
    hidden = (inside & nearer & (cameras == cameras[:, None])).any(1)
    seen = hidden.logical_not().nonzero()[:, 0]
    boxes, cameras, center, depth = boxes[objects[seen]], cameras[seen], center[seen], depth[seen]
    x, y = (boxes.center - _camera_centers(lidar2img)[cameras])[:, :2].unbind(1)
    local = boxes.yaw - torch.atan2(y, x)
    scale = 100 * depth / _focal_lengths(lidar2img)[cameras]
    heading = torch.stack([local.sin(), local.cos()], dim=1)
    values = torch.cat([heading, boxes.size.log(), scale.log()[:, None]], dim=1)
    return torch.cat([cameras[:, None], (center / stride).floor().long().flip(1)], dim=1), values


def _camera_centers(lidar2img: Tensor) -> Tensor:
    """Returns (N, 3) where the cameras are."""
    centers: Tensor = -torch.linalg.solve(lidar2img[:, :3, :3], lidar2img[:, :3, 3])
    return centers


def _focal_lengths(lidar2img: Tensor) -> Tensor:
    """Returns (N,) horizontal focal lengths in pixels; a third row is the optical axis, of length 1."""
    across, _, axis = lidar2img[:, :3, :3].unbind(1)
    focal: Tensor = (across - (across * axis).sum(1, keepdim=True) * axis).norm(dim=1)
    return focal


def bev_box_loss(
    predicted: Tensor, targets: BEVTargets, pc_range: Sequence[float], ray_heading: bool = False
) -> Tensor:
    """Computes the loss of the BEV head: smooth L1, summed, per object.

    Args:
        predicted: (B, BEV_CHANNELS, H, W).
        targets: of the B samples.
        pc_range: x0, y0, z0, x1, y1, z1 of the grid in metres; objects whose centre is outside do
            not count.
        ray_heading: yaws are relative to the ray from the origin.

    Returns:
        A float32 scalar; divided by the number of objects, averaged over the ranks and at least 1.
    """
    shape = (predicted.shape[2], predicted.shape[3])
    found = [bev_box_targets(boxes, shape, pc_range, ray_heading) for boxes in targets.boxes]
    read = [grid[:, cells[:, 0], cells[:, 1]].T for grid, (cells, _) in zip(predicted, found, strict=True)]
    return _loss(read, [values for _, values in found])


def image_box_loss(predicted: Tensor, targets: BEVTargets, stride: int) -> Tensor:
    """Computes the loss of the image head: smooth L1, summed, per object in an image.

    Args:
        predicted: (B*N, IMAGE_CHANNELS, h, w).
        targets: of the B samples, with their cameras.
        stride: of the features, in pixels.

    Returns:
        A float32 scalar; divided by the number of objects, averaged over the ranks and at least 1.
    """
    with torch.autocast(predicted.device.type, enabled=False):  # a projection in 16 bits misses by pixels
        samples = zip(targets.boxes, targets.lidar2img, targets.image_sizes, strict=True)
        found = [image_box_targets(*sample, stride) for sample in samples]
    images = predicted.unflatten(0, (len(found), -1))
    read = [
        maps[cells[:, 0], :, cells[:, 1], cells[:, 2]] for maps, (cells, _) in zip(images, found, strict=True)
    ]
    return _loss(read, [values for _, values in found])


def _loss(read: list[Tensor], values: list[Tensor]) -> Tensor:
    """Sums the smooth L1 loss of (m, C) predictions per sample, and divides it by the number of objects."""
    predicted = torch.cat(read).float()
    total = F.smooth_l1_loss(predicted, torch.cat(values), beta=BETA, reduction="sum")
    return total / average_over_ranks(len(predicted), predicted.device)
