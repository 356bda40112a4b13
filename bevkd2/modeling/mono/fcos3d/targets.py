"""Targets and outputs of a dense head at its positive locations (FCOS3D, section 3.2 and 3.3)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from bevkd2.modeling.mono.assign import distances_to_sides
from bevkd2.modeling.mono.depth import predicted_depth
from bevkd2.modeling.mono.fcos3d.head import DenseOutputs
from bevkd2.modeling.mono.inputs import MonoTargets
from bevkd2.modeling.mono.lift import direction_of, lift_boxes
from bevkd2.structures import CameraBoxes3D, project_points

# Decay of the centre-ness: exp(-2.5 * distance / reach) (FCOS3D, Eq. 1).
_CENTERNESS_ALPHA = 2.5
# The published code writes the root of two with three decimals.
_DIAGONAL = 1.414
# Depth in metres below which the projection of a corner is not used.
NEAREST_CORNER = 0.1


@dataclasses.dataclass
class DenseTargets:
    """P positive locations, ordered by image and location."""

    images: Tensor
    """(P,) int64: index of the image in its batch."""
    locations: Tensor
    """(P,) int64: index of the location among the Q of its image."""
    points: Tensor
    """(P, 2) x, y of the location in pixels."""
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
    """(P,) int64 direction bin of the yaw."""
    velocity: Tensor | None
    """(P, 2) vx, vz in m/s; None where the boxes have none."""
    boxes2d: Tensor
    """(P, 4) strides: distances to the left, top, right and bottom side, negative beyond a side."""
    centerness: Tensor
    """(P,) in (0, 1]."""
    attributes: Tensor | None
    """(P,) int64; None where the data has none."""

    def lifted_boxes(self) -> CameraBoxes3D:
        """Returns the objects as decoding would make them from these targets.

        They differ from the annotated boxes where the calibration has a translation: see
        :func:`bevkd2.modeling.mono.lift.lift_boxes`. The published keypoints are those of these boxes.
        """
        centers2d = self.points - self.offset * self.strides[:, None]
        return CameraBoxes3D(lift_boxes(centers2d, self.depth, self.size, self.yaw, self.cam2img))

    def keypoints(self, keypoint_range: float) -> tuple[Tensor, Tensor]:
        """Projects the corners.

        Args:
            keypoint_range: strides of a keypoint of 1.

        Returns:
            keypoints: (P, 16) x, y of the eight corners minus the location, in ``keypoint_range`` strides.
            visible: (P, 16) bool: False for corners behind the camera or nearer than 0.1 m, whose
                projection is meaningless.
        """
        uv, depth = project_points(self.lifted_boxes().corners(), self.cam2img)
        scale = keypoint_range * self.strides[:, None]
        keypoints = (uv - self.points[:, None]).flatten(1) / scale
        return keypoints, (depth >= NEAREST_CORNER).repeat_interleave(2, dim=1)


def dense_targets(targets: MonoTargets, direction_offset: float, center_radius: float = 1.5) -> DenseTargets:
    """Collects the targets of all locations that have an object; annotations are left as they are.

    Args:
        targets: annotations of B images, with ``assigned``.
        direction_offset: where the first direction bin begins, radians.
        center_radius: of the assignment, in strides.

    Returns:
        The targets of all images' positive locations.

    Raises:
        ValueError: the targets have no assignment.
    """
    assigned = targets.assignment()
    images, locations = (assigned >= 0).nonzero(as_tuple=True)
    objects = assigned[images, locations] + _first_objects(targets)[images]
    points, stride = targets.grid.locations[locations], targets.grid.location_strides[locations]
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
    """Returns (B,) int64: the number of objects of the images before."""
    counts = torch.tensor([len(labels) for labels in targets.labels], device=targets.cam2img.device)
    return counts.cumsum(0) - counts


@dataclasses.dataclass
class PositiveOutputs:
    """The maps of :class:`DenseOutputs` at P locations, in float32 at least."""

    boxes: Tensor
    """(P, 7 or 9)."""
    depth: Tensor
    """(P,) metres: the fused depth, or the direct one where the head has no depth bins."""
    direction: Tensor
    """(P, 2)."""
    centerness: Tensor
    """(P,)."""
    uncertainty: Tensor | None
    """(P,)."""
    keypoints: Tensor | None
    """(P, 16)."""
    boxes2d: Tensor | None
    """(P, 4)."""
    attributes: Tensor | None
    """(P, attributes)."""


def full_precision(values: Tensor) -> Tensor:
    """Returns values as float32; float64 stays.

    Args:
        values: of any shape and dtype.
    """
    return values if values.dtype == torch.float64 else values.float()


def outputs_at(
    outputs: DenseOutputs, targets: DenseTargets, fuse_lambda: Tensor | None, depth_bin_size: float
) -> PositiveOutputs:
    """Picks the maps' values at the positive locations.

    Their depths are computed of these values, not picked from ``MonoKnowledge.depth``: so the gradient passes
    through the positive locations alone.

    Args:
        outputs: the head's maps.
        targets: with the indices of the positive locations.
        fuse_lambda: scalar of the depths' fusion; needed where ``outputs`` has depth bins.
        depth_bin_size: metres between bins.

    Returns:
        The maps' values; where nothing is positive, empty tensors that depend on the maps.

    Raises:
        ValueError: depth bins without ``fuse_lambda``.
    """

    def pick(name: str) -> Tensor:
        return full_precision(outputs.flat(name)[targets.images, targets.locations])

    def pick_optional(name: str) -> Tensor | None:
        return None if getattr(outputs, name) is None else pick(name)

    boxes = pick("boxes")
    depth, _ = predicted_depth(boxes[:, 2], pick_optional("depth_bins"), fuse_lambda, depth_bin_size)
    uncertainty = pick_optional("uncertainty")
    return PositiveOutputs(
        boxes=boxes,
        depth=depth,
        direction=pick("direction"),
        centerness=pick("centerness")[:, 0],
        uncertainty=None if uncertainty is None else uncertainty[:, 0],
        keypoints=pick_optional("keypoints"),
        boxes2d=pick_optional("boxes2d"),
        attributes=pick_optional("attributes"),
    )
