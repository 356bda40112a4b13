"""Overlaps of rotated boxes, and their suppression.

Planar boxes are (N, 5): x, y of the centre, length, width, angle in radians counter-clockwise from +x. 3D
boxes have Boxes3D's layout, (N, 7): x, y, z of the gravity centre, length, width, height, yaw, upright.

Arithmetic is float64 for every dtype, on the CPU and on CUDA. Boxes on other devices, and on CUDA without
the CUDA library, are copied to the CPU and back. None of these functions has a gradient: inputs are detached.
Boxes without area have IoU 0 with every box, including themselves.

On CUDA each function waits for the device once: the overlaps to check the boxes, the suppression to learn how
many boxes are kept. The ops themselves (``torch.ops.bevkd2.rotated_iou`` etc.) do not check the boxes of
overlaps and never wait; boxes that are not finite then give undefined numbers.
"""

import torch
from torch import Tensor

from . import library  # defines torch.ops.bevkd2

_LAYOUTS = {5: "x, y, length, width, angle", 7: "x, y, z, length, width, height, yaw"}


def rotated_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Computes the intersection areas of planar boxes.

    Args:
        a: (N, 5) planar boxes, metres and radians.
        b: (M, 5) planar boxes on the same device.

    Returns:
        (N, M) square metres in the promoted dtype of the two, without gradient.

    Raises:
        ValueError: another shape or dtype, another device, a negative size, or a number that is not finite.
    """
    return _pairwise("rotated_intersection", a, b, 5)


def rotated_iou(a: Tensor, b: Tensor) -> Tensor:
    """Computes the intersection over union of planar boxes.

    Args:
        a: (N, 5) planar boxes, metres and radians.
        b: (M, 5) planar boxes on the same device.

    Returns:
        (N, M) in [0, 1], in the promoted dtype of the two, without gradient.

    Raises:
        ValueError: another shape or dtype, another device, a negative size, or a number that is not finite.
    """
    return _pairwise("rotated_iou", a, b, 5)


def box3d_iou(a: Tensor, b: Tensor) -> Tensor:
    """Computes the intersection over union of the volumes of upright 3D boxes.

    Args:
        a: (N, 7) boxes in Boxes3D's layout, metres and radians.
        b: (M, 7) boxes on the same device.

    Returns:
        (N, M) in [0, 1], in the promoted dtype of the two, without gradient.

    Raises:
        ValueError: another shape or dtype, another device, a negative size, or a number that is not finite.
    """
    return _pairwise("box3d_iou", a, b, 7)


def rotated_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, inclusive: bool = False) -> Tensor:
    """Runs greedy non-maximum suppression of planar boxes.

    Args:
        boxes: (N, 5) planar boxes.
        scores: (N,) floating point; infinities are allowed, NaN is not.
        iou_threshold: in [0, 1]. A box is suppressed if a kept box of higher score overlaps it by more.
        inclusive: also suppress at an IoU equal to the threshold, as mmcv's CPU kernel does.

    Returns:
        (K,) int64 indices of the boxes kept, by falling score; of equal scores the lower index comes first.

    Raises:
        ValueError: a shape, dtype or device that does not fit, NaN, a negative size, or another threshold.
    """
    labels = torch.zeros(scores.shape, dtype=torch.int64, device=scores.device)
    return _nms("rotated_nms", boxes, scores, labels, iou_threshold, inclusive)


def batched_rotated_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, inclusive: bool = False
) -> Tensor:
    """Runs greedy non-maximum suppression of planar boxes within each label.

    Boxes are not moved apart to separate the labels, so coordinates keep their precision.

    Args:
        boxes: (N, 5) planar boxes.
        scores: (N,) floating point; infinities are allowed, NaN is not.
        labels: (N,) integers: classes, images, or both in one number.
        iou_threshold: in [0, 1], for boxes of equal labels.
        inclusive: also suppress at an IoU equal to the threshold, as mmcv's CPU kernel does.

    Returns:
        (K,) int64 indices of the boxes kept, of all labels together by falling score; of equal scores the
        lower index comes first.

    Raises:
        ValueError: a shape, dtype or device that does not fit, NaN, a negative size, or another threshold.
    """
    return _nms("batched_rotated_nms", boxes, scores, labels, iou_threshold, inclusive)


def _pairwise(op: str, a: Tensor, b: Tensor, columns: int) -> Tensor:
    _check_device(op, "b", b, "a", a)
    first, second = _rows(op, "a", a, columns), _rows(op, "b", b, columns)
    if not bool(_good(torch.cat([first, second])).all()):
        _name_bad_box(op, "a", first)
        _name_bad_box(op, "b", second)
    out = getattr(torch.ops.bevkd2, op)(first, second)
    result: Tensor = out.to(device=a.device, dtype=torch.promote_types(a.dtype, b.dtype))
    return result


def _nms(
    op: str, boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, inclusive: bool
) -> Tensor:
    rows = _rows(op, "boxes", boxes, 5)
    for name, tensor in (("scores", scores), ("labels", labels)):
        if tuple(tensor.shape) != (len(boxes),):
            raise ValueError(
                f"{op}: {name} is {tuple(tensor.shape)}; expected one for each of the {len(boxes)} boxes: "
                f"({len(boxes)},)"
            )
        _check_device(op, name, tensor, "boxes", boxes)
    if not scores.is_floating_point():
        raise ValueError(f"{op}: scores is {scores.dtype}; expected a floating point type")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{op}: labels is {labels.dtype}; expected integers")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"{op}: iou_threshold is {iou_threshold}; expected a number in [0, 1]")
    numbers, classes = scores.detach().to(rows), labels.to(rows.device, torch.int64)
    try:
        kept = torch.ops.bevkd2.rotated_nms(rows, numbers, classes, float(iou_threshold), inclusive)
    except RuntimeError:
        # The op itself refuses invalid numbers, so that valid ones need no check here.
        _name_bad_box(op, "boxes", rows)
        _name_bad_score(op, numbers)
        raise
    indices: Tensor = kept.to(boxes.device)
    return indices


def _rows(op: str, name: str, boxes: Tensor, columns: int) -> Tensor:
    """Returns the boxes in float64, detached, on the device that computes."""
    if boxes.ndim != 2 or boxes.shape[1] != columns:
        raise ValueError(
            f"{op}: {name} is {tuple(boxes.shape)}; expected (N, {columns}): {_LAYOUTS[columns]}"
        )
    if not boxes.is_floating_point():
        raise ValueError(f"{op}: {name} is {boxes.dtype}; expected a floating point type")
    if boxes.is_meta:
        raise ValueError(f"{op}: {name} is on meta and has no numbers; expected boxes on cpu or cuda")
    here = boxes.is_cuda and library.HAS_CUDA
    return boxes.detach().to(boxes.device if here else "cpu", torch.float64)


def _good(rows: Tensor) -> Tensor:
    """Returns (N,) bool: the box is finite and has no negative size."""
    dims = rows.shape[1] // 2  # 2 or 3: as many centre coordinates as sizes
    return rows.isfinite().all(dim=1) & (rows[:, dims : 2 * dims] >= 0).all(dim=1)


def _name_bad_box(op: str, name: str, rows: Tensor) -> None:
    good = _good(rows)
    if not bool(good.all()):
        index = int((~good).nonzero()[0])
        raise ValueError(
            f"{op}: box {index} of {name} is {rows[index].tolist()} ({_LAYOUTS[rows.shape[1]]}); expected "
            "finite numbers and no negative size: look for what made it, or drop it"
        )


def _name_bad_score(op: str, scores: Tensor) -> None:
    if bool(scores.isnan().any()):
        index = int(scores.isnan().nonzero()[0])
        raise ValueError(f"{op}: score {index} is NaN; expected numbers: look for what made it, or drop it")


def _check_device(op: str, name: str, tensor: Tensor, other: str, reference: Tensor) -> None:
    if tensor.device != reference.device:
        raise ValueError(
            f"{op}: {name} is on {tensor.device}, {other} on {reference.device}; move one to the other"
        )


def _fake_pairwise(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[0])


for _op in ("rotated_intersection", "rotated_iou", "box3d_iou"):
    torch.library.register_fake(f"bevkd2::{_op}", _fake_pairwise)


@torch.library.register_fake("bevkd2::rotated_nms")
def _fake_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, inclusive: bool) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.int64)
