"""Boxes and cameras: the only place that knows a box layout or a frame of reference."""

from bevkd2.structures.boxes3d import Boxes3D, wrap_angle
from bevkd2.structures.camera_boxes import (
    UPRIGHT_TO_CAMERA,
    CameraBoxes3D,
    camera_from_upright,
    camera_to_upright,
    project_boxes,
    projected_boxes2d,
)
from bevkd2.structures.cameras import (
    CAMERA_NAMES,
    invert_pose,
    lidar2img_matrix,
    pose_matrix,
    project_points,
    quaternion_to_matrix,
    quaternion_yaw,
    scale_intrinsics,
    unproject_points,
)
from bevkd2.structures.global_boxes import GlobalBoxes, from_global, to_global

__all__ = [
    "CAMERA_NAMES",
    "UPRIGHT_TO_CAMERA",
    "Boxes3D",
    "CameraBoxes3D",
    "GlobalBoxes",
    "camera_from_upright",
    "camera_to_upright",
    "from_global",
    "invert_pose",
    "lidar2img_matrix",
    "pose_matrix",
    "project_boxes",
    "project_points",
    "projected_boxes2d",
    "quaternion_to_matrix",
    "quaternion_yaw",
    "scale_intrinsics",
    "to_global",
    "unproject_points",
    "wrap_angle",
]
