"""Consistency of a head's 2D box and its own projected 3D box (PGD's released code)."""

from __future__ import annotations

import torch
from torch import Tensor

from bevkd2.modeling.mono.fcos3d.targets import NEAREST_CORNER, DenseTargets, PositiveOutputs
from bevkd2.modeling.mono.lift import full_local_yaw, lift_boxes
from bevkd2.structures import CameraBoxes3D, project_points

# Smallest area in square pixels; smaller ones are replaced by it.
_SMALLEST_AREA = 1e-6


def consistency_loss(
    found: PositiveOutputs, wanted: DenseTargets, depth: Tensor, direction_offset: float
) -> Tensor:
    """Computes the generalised IoU loss between both boxes, summed over the positive locations.

    A projected box with a corner behind the camera, or nearer than 0.1 m, has no extent in the image and
    is left out.

    Args:
        found: the head's outputs at P locations, with ``boxes2d``.
        wanted: of the same locations.
        depth: (P,) metres: places the 3D box sideways.
        direction_offset: where the first direction bin begins, radians.

    Returns:
        A scalar.
    """
    projected, visible = projected_extent(found, wanted, depth, direction_offset)
    iou = generalized_iou(projected, decoded_boxes2d(found, wanted))
    return ((1 - iou) * visible).sum()


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Computes the generalised IoU of pairs (arXiv 1902.09630).

    Unlike torchvision's loss, it has a gradient where a box has no width or no height: distances after a
    ReLU make such boxes, and they should be able to grow.

    Args:
        a: (P, 4) x1, y1, x2, y2, x1 <= x2, y1 <= y2.
        b: the same.

    Returns:
        (P,) in [-1, 1].
    """
    overlap = _area(torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:]))
    union = (_area(a[:, :2], a[:, 2:]) + _area(b[:, :2], b[:, 2:]) - overlap).clamp(min=_SMALLEST_AREA)
    hull = _area(torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:]))
    hull = hull.clamp(min=_SMALLEST_AREA)
    return overlap / union - (hull - union) / hull


def _area(low: Tensor, high: Tensor) -> Tensor:
    sides = high - low
    # Not clamp, whose gradient at exactly 0 differs between versions of torch: here it is 1.
    return sides.where(sides >= 0, 0).prod(dim=1)


def decoded_boxes2d(found: PositiveOutputs, wanted: DenseTargets) -> Tensor:
    """Decodes the predicted 2D boxes of P locations that have an object.

    Args:
        found: what the head predicts there.
        wanted: their points and strides in pixels.

    Returns:
        (P, 4) x1, y1, x2, y2 in pixels.

    Raises:
        ValueError: the head predicts no 2D boxes.
    """
    if found.boxes2d is None:
        raise ValueError("consistency_loss: the head predicts no 2D boxes")
    distances = found.boxes2d * wanted.strides[:, None]
    return torch.cat([wanted.points - distances[:, :2], wanted.points + distances[:, 2:]], dim=1)


def projected_extent(
    found: PositiveOutputs, wanted: DenseTargets, depth: Tensor, direction_offset: float
) -> tuple[Tensor, Tensor]:
    """Computes the rectangle around the predicted 3D box, projected at the annotated distance.

    Args:
        found: the head's outputs at P locations.
        wanted: of the same locations.
        depth: (P,) metres: makes x and y of the predicted centre; its z is the annotated one, so that the
            rectangle teaches everything but the depth.
        direction_offset: where the first direction bin begins, radians.

    Returns:
        extent: (P, 4) x1, y1, x2, y2 in pixels, not clipped to the image.
        visible: (P,) bool: all eight corners are at least 0.1 m before the camera.
    """
    centers2d = wanted.points - found.boxes[:, :2] * wanted.strides[:, None]
    yaw = full_local_yaw(found.boxes[:, 6], found.direction.argmax(dim=1), direction_offset)
    boxes = lift_boxes(centers2d, depth, found.boxes[:, 3:6], yaw, wanted.cam2img)
    boxes = torch.cat([boxes[:, :2], wanted.lifted_boxes().tensor[:, 2:3], boxes[:, 3:]], dim=1)
    uv, corner_depth = project_points(CameraBoxes3D(boxes).corners(), wanted.cam2img)
    extent = torch.cat([uv.amin(dim=1), uv.amax(dim=1)], dim=1)
    return extent, (corner_depth >= NEAREST_CORNER).all(dim=1)
