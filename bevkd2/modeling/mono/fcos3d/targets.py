"""What the positive locations of a dense monocular head have to predict (FCOS3D, section 3.2 and 3.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from bevkd2.modeling.mono.assign import distances_to_sides
from bevkd2.modeling.mono.grid import locations_of, strides_of_locations
from bevkd2.modeling.mono.inputs import MonoTargets
from bevkd2.modeling.mono.lift import direction_of, lift_boxes
from bevkd2.structures import CameraBoxes3D, project_points

# How fast the centre-ness falls: exp(-2.5 * distance / reach) (FCOS3D, Eq. 1).
_CENTERNESS_ALPHA = 2.5
# The published code writes the root of two with three decimals.
_DIAGONAL = 1.414
# Metres before the camera within which a corner has no image worth learning from.
NEAREST_CORNER = 0.1


@dataclasses.dataclass
class DenseTargets:
    """P positive locations, image by image, rising within an image."""

    images: Tensor
    """(P,) int64: index of the image in its batch."""
    locations: Tensor
    """(P,) int64: index of the location among the Q of its image."""
    points: Tensor
    """(P, 2) pixels: where the location stands."""
    strides: Tensor
    """(P,) pixels: stride of the location's level."""
    cam2img: Tensor
    """(P, 4, 4) of the location's image."""
    labels: Tensor
    """(P,) int64."""
    offset: Tensor
    """(P, 2) strides: location minus projected centre."""
    depth: Tensor
    """(P,) metres along the optical axis."""
    size: Tensor
    """(P, 3) length, height, width in metres: the order of the head."""
    yaw: Tensor
    """(P,) local yaw in radians, by the azimuth of the 3D centre, not wrapped."""
    direction: Tensor
    """(P,) int64: the half turn that the yaw lies in."""
    velocity: Tensor | None
    """(P, 2) vx, vz in m/s; None where the boxes have none."""
    boxes2d: Tensor
    """(P, 4) strides: distances to the left, top, right and bottom side, negative beyond a side."""
    centerness: Tensor
    """(P,) in (0, 1]."""
    attributes: Tensor | None
    """(P,) int64; None where the data has none."""

    def lifted_boxes(self) -> CameraBoxes3D:
        """The objects as decoding would put them together from these targets.

        They differ from the annotated boxes where the calibration has a translation: see
        :func:`bevkd2.modeling.mono.lift.lift_boxes`. The published keypoints are those of these boxes.
        """
        centers2d = self.points - self.offset * self.strides[:, None]
        return CameraBoxes3D(lift_boxes(centers2d, self.depth, self.size, self.yaw, self.cam2img))

    def keypoints(self, keypoint_range: float) -> tuple[Tensor, Tensor]:
        """The projected corners.

        Args:
            keypoint_range: strides that count as 1.

        Returns:
            keypoints: (P, 16) x, y of the eight corners minus the location, in ``keypoint_range`` strides.
            visible: (P, 16) bool: False for corners behind the camera or nearer than 0.1 m, whose
                projection means nothing.
        """
        uv, depth = project_points(self.lifted_boxes().corners(), self.cam2img)
        scale = keypoint_range * self.strides[:, None]
        keypoints = (uv - self.points[:, None]).flatten(1) / scale
        return keypoints, (depth >= NEAREST_CORNER).repeat_interleave(2, dim=1)


def dense_targets(
    targets: MonoTargets,
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    direction_offset: float,
    center_radius: float = 1.5,
) -> DenseTargets:
    """Collects the targets of all locations that stand for an object; annotations are left as they are.

    Args:
        targets: annotations of B images, with ``assigned``.
        shapes: rows and columns of the L levels.
        strides: pixels to a cell, level by level.
        direction_offset: where the first half turn begins, radians.
        center_radius: of the assignment, in strides.

    Returns:
        The targets of all images' positive locations.
    """
    assert targets.assigned is not None, "assign_locations first"
    images, locations = (targets.assigned >= 0).nonzero(as_tuple=True)
    objects = targets.assigned[images, locations] + _first_objects(targets)[images]
    points = locations_of(shapes, strides, images.device)[locations]
    stride = strides_of_locations(shapes, strides, images.device)[locations]
    boxes = CameraBoxes3D.cat(targets.boxes)
    offset = points - torch.cat(targets.centers2d)[objects]
    yaw = boxes.alpha()[objects]
    return DenseTargets(
        images=images,
        locations=locations,
        points=points,
        strides=stride,
        cam2img=targets.cam2img[images],
        labels=torch.cat(targets.labels)[objects],
        offset=offset / stride[:, None],
        depth=torch.cat(targets.depths)[objects],
        size=boxes.size[objects][:, [0, 2, 1]],
        yaw=yaw,
        direction=direction_of(yaw, direction_offset),
        velocity=boxes.velocity[objects] if boxes.has_velocity else None,
        boxes2d=distances_to_sides(points, torch.cat(targets.boxes2d)[objects]) / stride[:, None],
        centerness=torch.exp(-_CENTERNESS_ALPHA * offset.norm(dim=1) / (_DIAGONAL * center_radius * stride)),
        attributes=None if targets.attributes is None else torch.cat(targets.attributes)[objects],
    )


def _first_objects(targets: MonoTargets) -> Tensor:
    """(B,) int64: how many objects the images before have."""
    counts = torch.tensor([len(labels) for labels in targets.labels], device=targets.cam2img.device)
    return counts.cumsum(0) - counts
