"""From a camera's frame to one where z is up (lidar, ego, global) and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from bevkd2.structures.boxes3d import Boxes3D
from bevkd2.structures.camera_boxes import CameraBoxes3D
from bevkd2.structures.cameras import invert_pose

Array = npt.NDArray[np.float64]

UPRIGHT_TO_CAMERA: Array = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
"""(4, 4) to a camera's axes (x right, y down, z forward) from those of ``CameraBoxes3D.upright`` (x right, y
forward, z up): ``cam2img @ UPRIGHT_TO_CAMERA`` projects a camera's upright boxes."""


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
