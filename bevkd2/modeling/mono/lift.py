"""From the image plane into the camera's frame: centre and depth to a position, local yaw to a heading."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bevkd2.modeling.mono.inputs import MonoInputs
from bevkd2.structures import CameraBoxes3D, projected_boxes2d, unproject_points, wrap_angle


def direction_of(local_yaw: Tensor, direction_offset: float) -> Tensor:
    """Returns the direction bin (half turn) of a local yaw.

    Args:
        local_yaw: (...) radians.
        direction_offset: where the first half begins, radians.

    Returns:
        (...) int64: 0 for yaws in [offset, offset + pi), 1 for the other half.
    """
    return (wrap_angle(local_yaw, start=direction_offset) >= direction_offset + math.pi).long()


def full_local_yaw(half: Tensor, direction: Tensor, direction_offset: float) -> Tensor:
    """Computes the local yaw from its value modulo pi and its direction bin.

    Args:
        half: (...) radians; whole multiples of pi do not matter.
        direction: (...) int64: 0 for yaws in [offset, offset + pi), 1 for the other half.
        direction_offset: where the first half begins, radians.

    Returns:
        (...) radians in [offset, offset + 2 pi).
    """
    within = wrap_angle(half, start=direction_offset, period=math.pi)
    return within + math.pi * direction.to(half.dtype)


def lift_boxes(
    centers2d: Tensor, depths: Tensor, published_sizes: Tensor, local_yaws: Tensor, cam2img: Tensor
) -> Tensor:
    """Computes boxes in the camera's frame from image-plane predictions (FCOS3D, section 3.2).

    The heading is the local yaw plus the azimuth of the pixel's ray, which takes the camera's centre for the
    origin, as published; a calibration with a translation makes that a few milliradians wrong.

    Args:
        centers2d: (P, 2) projected gravity centres in pixels.
        depths: (P,) metres, as the projection gives them.
        published_sizes: (P, 3) length, height, width in metres.
        local_yaws: (P,) radians.
        cam2img: (P, 4, 4) of each box's image.

    Returns:
        (P, 7) in the layout of CameraBoxes3D.
    """
    centers = unproject_points(centers2d[:, None], depths[:, None], cam2img)[:, 0]
    azimuths = torch.atan2(centers2d[:, 0] - cam2img[:, 0, 2], cam2img[:, 0, 0])
    return torch.cat([centers, published_sizes[:, [0, 2, 1]], (local_yaws + azimuths)[:, None]], dim=1)


@torch.no_grad()
def boxes_around(boxes: Tensor, inputs: MonoInputs) -> Tensor:
    """Computes the 2D boxes around the projected corners of 3D boxes.

    Args:
        boxes: (B, Q, 7) in the layout of CameraBoxes3D.
        inputs: of the same images.

    Returns:
        (B, Q, 4) x1, y1, x2, y2 in pixels, not beyond the image; without gradient.
    """
    rows = []
    for row, cam2img, size in zip(boxes, inputs.cam2img, inputs.image_sizes, strict=True):
        around = projected_boxes2d(CameraBoxes3D(row), cam2img, inputs.padded_size)
        rows.append(around.minimum(size.flip(0).repeat(2).to(around)))
    return torch.stack(rows)
