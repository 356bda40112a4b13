"""Oriented 3D boxes in a rectified camera's frame, and their projection."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bevkd2.structures.box_tensor import BoxTensor
from bevkd2.structures.boxes3d import Boxes3D
from bevkd2.structures.cameras import invert_pose, project_points

Array = npt.NDArray[np.float64]

UPRIGHT_TO_CAMERA: Array = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
"""(4, 4) to a camera's axes (x right, y down, z forward) from those of ``CameraBoxes3D.upright`` (x right, y
forward, z up): ``cam2img @ UPRIGHT_TO_CAMERA`` projects a camera's upright boxes."""

# Signs of the half extents along (length, down, width) at the eight corners, in the order of mmdetection3d's
# camera boxes: 0 to 3 the rear face, 4 to 7 the front one, each top right, top left, bottom left, bottom
# right as seen along the heading.
_CORNER_SIGNS = (
    (-1, -1, -1),
    (-1, -1, 1),
    (-1, 1, 1),
    (-1, 1, -1),
    (1, -1, -1),
    (1, -1, 1),
    (1, 1, 1),
    (1, 1, -1),
)
# The twelve edges, by their corners.
_EDGE_STARTS = (0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3)
_EDGE_ENDS = (1, 2, 3, 0, 5, 6, 7, 4, 4, 5, 6, 7)
# Metres before the camera at which boxes are cut for their image-plane extent.
_NEAR = 0.01


class CameraBoxes3D(BoxTensor):
    """N oriented boxes in a rectified camera's frame: x right, y down, z forward.

    Attributes:
        tensor: (N, 7) or (N, 9) floating point: x, y, z of the gravity centre, length (along the heading),
            width, height in metres, rotation_y in radians, and with nine columns the velocity vx, vz in m/s.
            rotation_y is KITTI's, about the down axis: 0 is length along +x, the heading is (cos, -sin) in
            (x, z).
    """

    COLUMNS = "x, y, z, length, width, height, rotation_y[, vx, vz]"

    @property
    def bottom_center(self) -> Tensor:
        """(N, 3) centres of the bottom faces in metres (y points down)."""
        x, y, z = self.center.unbind(dim=1)
        return torch.stack([x, y + self.tensor[:, 5] / 2, z], dim=1)

    @property
    def rotation_y(self) -> Tensor:
        """(N,) heading in radians, KITTI's sense."""
        return self.tensor[:, 6]

    @property
    def depth(self) -> Tensor:
        """(N,) z of the gravity centres, metres."""
        return self.tensor[:, 2]

    def alpha(self) -> Tensor:
        """Returns the (N,) observation angle in radians.

        It is rotation_y less the azimuth of the centre's ray, not wrapped.
        """
        return self.rotation_y - torch.atan2(self.tensor[:, 0], self.tensor[:, 2])

    def corners(self) -> Tensor:
        """Returns the eight corners, in the order of mmdetection3d's camera boxes.

        Returns:
            (N, 8, 3) in metres. 0 to 3 are the rear face, 4 to 7 the front one; seen along the heading, each
            top right, top left, bottom left, bottom right.
        """
        signs = self.tensor.new_tensor(_CORNER_SIGNS)
        along, down, across = (0.5 * signs * self.tensor[:, None, [3, 5, 4]]).unbind(dim=-1)
        cos, sin = self.rotation_y.cos()[:, None], self.rotation_y.sin()[:, None]
        x = cos * along + sin * across
        z = cos * across - sin * along
        return torch.stack([x, down, z], dim=-1) + self.center[:, None, :]

    def bev(self) -> Tensor:
        """Returns (N, 5) footprints x, z, length, width, -rotation_y: what ``bevkd2.ops.box3d`` reads."""
        t = self.tensor
        return torch.stack([t[:, 0], t[:, 2], t[:, 3], t[:, 4], -t[:, 6]], dim=1)

    def flip(self) -> CameraBoxes3D:
        """Returns the boxes mirrored at the plane x = 0.

        That is x -> -x, rotation_y -> pi - rotation_y (not wrapped), vx -> -vx.
        """
        out = self.tensor.clone()
        out[:, 0] = -out[:, 0]
        out[:, 6] = math.pi - out[:, 6]
        if self.has_velocity:
            out[:, 7] = -out[:, 7]
        return CameraBoxes3D(out)

    def upright(self) -> Boxes3D:
        """Returns the same boxes with axes x right, y forward, z up: Boxes3D's convention."""
        t = self.tensor
        columns = [t[:, 0], t[:, 2], -t[:, 1], t[:, 3], t[:, 4], t[:, 5], -t[:, 6]]
        return Boxes3D(torch.stack([*columns, *t[:, 7:].unbind(dim=1)], dim=1))

    @classmethod
    def from_upright(cls, boxes: Boxes3D) -> CameraBoxes3D:
        """Converts boxes with axes x right, y forward, z up; the inverse of :meth:`upright`."""
        t = boxes.tensor
        columns = [t[:, 0], -t[:, 2], t[:, 1], t[:, 3], t[:, 4], t[:, 5], -t[:, 6]]
        return cls(torch.stack([*columns, *t[:, 7:].unbind(dim=1)], dim=1))

    @classmethod
    def from_bottom(cls, tensor: Tensor) -> CameraBoxes3D:
        """Boxes from the published layout, that of mmdetection3d's camera boxes.

        Args:
            tensor: (N, 7) or (N, 9) floating point: x, y of the bottom centre, z, length, height, width,
                rotation_y[, vx, vz].

        Returns:
            The boxes, with gravity centres.

        Raises:
            ValueError: for another shape, or a tensor that is not of a floating point type.
        """
        checked = cls(tensor).tensor
        x, y, z, length, height, width = checked[:, :6].unbind(dim=1)
        return cls(
            torch.cat([torch.stack([x, y - height / 2, z, length, width, height], 1), checked[:, 6:]], 1)
        )

    def to_bottom(self) -> Tensor:
        """Returns boxes by the centre of their bottom face.

        Returns:
            (N, 7) or (N, 9) x, y, z of the bottom centre, length, height, width,
            rotation_y[, vx, vz].
        """
        return torch.cat([self.bottom_center, self.tensor[:, [3, 5, 4]], self.tensor[:, 6:]], dim=1)


def project_boxes(boxes: CameraBoxes3D, cam2img: Tensor) -> tuple[Tensor, Tensor]:
    """Projects the corners into the image.

    Args:
        boxes: N boxes.
        cam2img: (4, 4) from the camera's frame, metres, to (u * d, v * d, d, 1), pixels.

    Returns:
        uv: (N, 8, 2) pixel coordinates (x, y). Meaningless where the depth is not positive.
        depth: (N, 8) metres, as cam2img gives it (its translation included).
    """
    return project_points(boxes.corners(), cam2img.to(boxes.tensor))


def projected_boxes2d(boxes: CameraBoxes3D, cam2img: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Returns image-plane boxes around the projected corners.

    A box that reaches behind the camera is cut at the near plane first (0.01 m), so its image-plane box
    reaches the border that the object leaves the image by. One that lies behind the camera as a whole, or
    outside the image, has no area.

    Args:
        boxes: N boxes.
        cam2img: (4, 4) from the camera's frame, metres, to (u * d, v * d, d, 1), pixels.
        image_size: height, width in pixels.

    Returns:
        (N, 4) x1, y1, x2, y2 in pixels, clipped to the image. Zeros for a box behind the camera.
    """
    cam2img = cam2img.to(boxes.tensor)
    corners = boxes.corners()
    depth = (corners * cam2img[2, :3]).sum(dim=-1) + cam2img[2, 3]
    cuts, crosses = _near_plane_cuts(corners, depth)
    visible = torch.cat([depth >= _NEAR, crosses], dim=1)[..., None]
    uv, _ = project_points(torch.cat([corners, cuts], dim=1), cam2img)
    low = uv.where(visible, math.inf).amin(dim=1)
    high = uv.where(visible, -math.inf).amax(dim=1)
    border = uv.new_tensor([image_size[1], image_size[0]])
    extent = torch.cat([low, high], dim=1).clamp(min=0).minimum(border.repeat(2))
    return extent.where(visible.any(dim=1), 0)


def _near_plane_cuts(corners: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Where the edges pass the near plane: points (N, 12, 3), and which edges do (N, 12)."""
    start, end = depth[:, list(_EDGE_STARTS)], depth[:, list(_EDGE_ENDS)]
    crosses = (start < _NEAR) != (end < _NEAR)
    fraction = (_NEAR - start) / (end - start).where(crosses, 1)
    begin = corners[:, list(_EDGE_STARTS)]
    edge = corners[:, list(_EDGE_ENDS)] - begin
    return begin + fraction.where(crosses, 0)[..., None] * edge, crosses


def camera_to_upright(boxes: CameraBoxes3D, cam2frame: Array) -> Boxes3D:
    """Expresses boxes of a camera in a frame with z up.

    Centres are exact. A camera is tilted by a degree or two, and a box turns about its frame's vertical axis
    alone: headings and velocities lose their component across the new ground plane
    (``Boxes3D.transform``), an error of second order in the tilt. The faces of a box change their tilt by the
    tilt itself.

    Args:
        boxes: N boxes.
        cam2frame: (4, 4) rigid transform from the camera to the frame; float64, as global coordinates reach
            kilometres.

    Returns:
        N boxes, float64, with a velocity if ``boxes`` have one.
    """
    matrix = torch.from_numpy(cam2frame @ UPRIGHT_TO_CAMERA)
    return boxes.to(torch.float64).upright().transform(matrix)


def camera_from_upright(boxes: Boxes3D, cam2frame: Array) -> CameraBoxes3D:
    """Expresses boxes of a frame with z up in a camera's: the way back from ``camera_to_upright``, same rule.

    Args:
        boxes: N boxes.
        cam2frame: (4, 4) rigid transform from the camera to the frame, float64.

    Returns:
        N boxes in the dtype of ``boxes``, rotation_y in [-pi, pi]; NaN velocities stay NaN.
    """
    matrix = torch.from_numpy(invert_pose(cam2frame @ UPRIGHT_TO_CAMERA))
    moved = boxes.to(torch.float64).transform(matrix)
    return CameraBoxes3D.from_upright(moved).to(boxes.tensor.dtype)
