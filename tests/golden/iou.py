"""Overlaps of 2,000 pairs of KITTI boxes, and of all pairs of 60 with 50."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bevkd2.ops import box3d_iou, rotated_intersection, rotated_iou
from bevkd2.structures import CameraBoxes3D
from tests.golden.report import Differences, Row

# Relative; beneath the floors, where pairs touch, areas and quotients are rounding alone.
_RELATIVE = 1e-9
_FLOOR = 1e-14
# Touching boxes have an overlap of 0 and identical ones of 1; the tolerance is the rounding of the inputs.
_TOUCHING, _IDENTICAL = 1e-14, 2e-14
_CHUNK = 50  # of the pairs, in each of the (_CHUNK, _CHUNK) matrices whose diagonal holds them


def compare(directory: Path) -> list[Row]:
    """Rows of the planar intersection, the planar IoU, its like over one area, and the 3D IoU.

    Args:
        directory: golden/mono.

    Returns:
        One row a quantity, of pairs and of matrices.
    """
    with np.load(directory / "iou" / "rotated_iou_pairs.npz", allow_pickle=False) as arrays:
        names = [str(name) for name in arrays["category_names"]]
        golden = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "category_names"}
    ours = _overlaps(golden)
    touching, identical = "rotated boxes: IoU of touching pairs", "rotated boxes: IoU of identical pairs"
    tolerances = {f"rotated boxes: {key}": _RELATIVE for key in ours}
    differences = Differences({**tolerances, touching: _TOUCHING, identical: _IDENTICAL})
    for key, values in ours.items():
        differences.add_close(f"rotated boxes: {key}", values, golden[key], _FLOOR)
    for index, name in enumerate(names):
        iou = ours["iou_bev"][golden["category"] == index]
        if name.startswith("touching"):
            differences.add(touching, iou, torch.zeros_like(iou))
        if name.startswith("identical"):
            differences.add(identical, iou, torch.ones_like(iou))
    return differences.rows()


def _overlaps(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    a, b = _kitti(golden["boxes_a"]), _kitti(golden["boxes_b"])
    rows, columns = _kitti(golden["matrix_boxes_a"]), _kitti(golden["matrix_boxes_b"])
    shared = _pairs(rotated_intersection, a.bev(), b.bev())
    return {
        "inter_bev": shared,
        "iou_bev": _pairs(rotated_iou, a.bev(), b.bev()),
        "iou_3d": _pairs(box3d_iou, a.upright().tensor, b.upright().tensor),
        "iof_bev_a": shared / a.size[:, :2].prod(dim=1),
        "iof_bev_b": shared / b.size[:, :2].prod(dim=1),
        "matrix_iou_bev": rotated_iou(rows.bev(), columns.bev()),
        "matrix_iou_3d": box3d_iou(rows.upright().tensor, columns.upright().tensor),
    }


def _kitti(rows: Tensor) -> CameraBoxes3D:
    """Boxes from x, y of the bottom, z, height, width, length, rotation_y."""
    return CameraBoxes3D.from_bottom(rows[:, [0, 1, 2, 5, 3, 4, 6]])


def _pairs(overlap: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    chunks = zip(a.split(_CHUNK), b.split(_CHUNK), strict=True)
    return torch.cat([overlap(first, second).diagonal() for first, second in chunks])
