"""Modulated deformable convolution, and the geometry and suppression of camera boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from bevkd2.ops import rotated_iou, rotated_nms
from bevkd2.structures import (
    CameraBoxes3D,
    project_boxes,
    project_points,
    unproject_points,
    wrap_angle,
)
from tests.golden.report import FLOAT32_FLOOR, FLOAT32_RELATIVE, Differences, Row

_DCN_RELATIVE = 1e-9
_DCN_FLOOR = 1e-12
# The most that float32 numbers differ by: metres up to 100, radians up to 10, pixels up to 2,000.
_METRES = 2e-5
_RADIANS = 2e-6
_PIXELS = 1e-3
_NMS = "nms_keep_"
# The recorded kernel computes in float32.
_IOU = 1e-6


def compare(directory: Path) -> list[Row]:
    """Rows of ops/dcnv2.npz and ops/geometry_nms.npz.

    Args:
        directory: golden/mono.

    Returns:
        One row a quantity.
    """
    ops = directory / "ops"
    return [*_deformable_convolution(_load(ops / "dcnv2.npz")), *_geometry(_load(ops / "geometry_nms.npz"))]


def _load(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _deformable_convolution(golden: Mapping[str, Tensor]) -> list[Row]:
    outputs = ("y", "grad_x", "grad_offset", "grad_mask", "grad_weight", "grad_bias")
    differences = Differences({f"DCNv2: {name}": _DCN_RELATIVE for name in outputs})
    for case in sorted({key.split("/")[0] for key in golden}):
        ours = _convolve(
            {key.split("/")[1]: value for key, value in golden.items() if key.startswith(f"{case}/")}
        )
        for name in outputs:
            differences.add_close(f"DCNv2: {name}", ours[name], golden[f"{case}/{name}"], _DCN_FLOOR)
    return differences.rows()


def _convolve(case: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The output of one case and the gradients of its inputs. Groups follow from the shapes."""
    stride, padding, dilation = case["stride_pad_dil_groups_dg"][:3].tolist()
    leaves = {name: case[name].clone().requires_grad_() for name in ("x", "offset", "mask", "weight", "bias")}
    y = deform_conv2d(
        leaves["x"],
        leaves["offset"],
        leaves["weight"],
        leaves["bias"],
        stride=stride,
        padding=padding,
        dilation=dilation,
        mask=leaves["mask"],
    )
    y.backward(case["grad_y"])
    gradients = {f"grad_{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {"y": y, **gradients}


def _geometry(golden: Mapping[str, Tensor]) -> list[Row]:
    differences = Differences(
        {
            "camera boxes: metres and radians": FLOAT32_RELATIVE,
            "camera boxes: angles": _RADIANS,
            "camera boxes: projections": FLOAT32_RELATIVE,
            "camera boxes: unprojections": FLOAT32_RELATIVE,
            "camera boxes: rotated IoU": _IOU,
            "camera boxes: rotated NMS, indices that differ": 0,
        }
    )
    boxes = CameraBoxes3D.from_bottom(golden["boxes"])
    _boxes(differences, boxes, golden)
    _angles(differences, golden["angle"], golden)
    _projections(differences, boxes, golden)
    planar, scores = golden["bev_xywhr"], golden["scores"]
    differences.add("camera boxes: rotated IoU", rotated_iou(planar, planar), golden["iou_rotated_bev"])
    for threshold in (key.removeprefix(_NMS) for key in golden if key.startswith(_NMS)):
        kept = rotated_nms(planar, scores, float(threshold), inclusive=True)
        recorded = golden[f"{_NMS}{threshold}"]
        differences.add_unequal("camera boxes: rotated NMS, indices that differ", kept, recorded)
    return differences.rows()


def _boxes(differences: Differences, boxes: CameraBoxes3D, golden: Mapping[str, Tensor]) -> None:
    x, z, length, width, angle = boxes.bev().unbind(dim=1)
    half_height = torch.zeros_like(boxes.to_bottom())
    half_height[:, 1] = boxes.size[:, 2] / 2
    ours = {
        "corners": boxes.corners(),
        "gravity_center": boxes.center,
        "bottom_center": boxes.bottom_center,
        "bev_xywhr": boxes.bev(),
        "bev_xyxyr": torch.stack(
            [x - length / 2, z - width / 2, x + length / 2, z + width / 2, angle], dim=1
        ),
        # The same seven numbers read as a gravity centre: half a height lower.
        "tensor_if_input_origin_is_gravity": boxes.to_bottom() + half_height,
        "flip_horizontal": boxes.flip().to_bottom(),
        "alpha_local_yaw": boxes.alpha(),
    }
    for key, values in ours.items():
        quantity = "camera boxes: metres and radians"
        differences.add_close(quantity, values, golden[key], FLOAT32_FLOOR, at_most=_METRES)


def _angles(differences: Differences, angle: Tensor, golden: Mapping[str, Tensor]) -> None:
    ours = {
        "limit_period_off0.5_2pi": wrap_angle(angle),
        "limit_period_off0_2pi": wrap_angle(angle, start=0),
        "limit_period_off0_pi": wrap_angle(angle, start=0, period=math.pi),
    }
    for key, values in ours.items():
        differences.add("camera boxes: angles", values, golden[key])


def _projections(differences: Differences, boxes: CameraBoxes3D, golden: Mapping[str, Tensor]) -> None:
    cam2img = golden["cam2img"].float()
    uv, depth = project_points(boxes.center, cam2img)
    ours = {
        "corners_uv": project_boxes(boxes, cam2img)[0],
        "center_uvd": torch.cat([uv, depth[:, None]], dim=1),
    }
    for key, values in ours.items():
        quantity = "camera boxes: projections"
        differences.add_close(quantity, values, golden[key], FLOAT32_FLOOR, at_most=_PIXELS)
    uv, depth = golden["uvd"][:, :2], golden["uvd"][:, 2]
    intrinsics = torch.eye(4)
    intrinsics[:3, :3] = cam2img[:3, :3]
    for key, matrix in (("uvd_to_xyz", cam2img), ("uvd_to_xyz_3x3", intrinsics)):
        points = unproject_points(uv, depth, matrix)
        quantity = "camera boxes: unprojections"
        differences.add_close(quantity, points, golden[key], FLOAT32_FLOOR, at_most=_METRES)
