"""Maps, candidates and detections of PGD's head, in its KITTI and its nuScenes setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bevkd2.modeling.mono.fcos3d.decode import (
    Candidates,
    DecodeOptions,
    candidates_of,
    fused_depth,
    select_detections,
)
from bevkd2.modeling.mono.fcos3d.head import DenseOutputs
from bevkd2.modeling.mono.grid import DenseGrid
from bevkd2.structures import CameraBoxes3D
from tests.golden.pgd_case import (
    BIN_SIZE,
    DIRECTION_OFFSET,
    KEYPOINT_RANGE,
    MAPS,
    PGDCase,
    load_arrays,
    pgd_cases,
)
from tests.golden.report import FLOAT32_FLOOR, FLOAT32_RELATIVE, Differences, Row
from tests.tolerance import float64_twin

# Ours is computed in float64, so that it is the same on any machine. What differs is the rounding of the
# recordings, which are in float32: the floor that each of them needs was measured.
_RELATIVE = FLOAT32_RELATIVE
# 8.9e-5: the sums of four to six convolutions cancel out.
_MAP_FLOOR = 1e-4
# Of the maps in pixels, up to 128 times these numbers: 3.6e-4.
_PIXEL_FLOOR = 1e-3
# Of keypoints, 16 times that: 1.4e-3.
_KEYPOINT_FLOOR = 3e-3
# Of candidates' 2D boxes: 1.9e-4 (pixels).
_BOX2D_FLOOR = 5e-4
# Of detections' corners: 3.4e-5 (metres).
_CORNER_FLOOR = 5e-5
# Kind of box parameter -> the floor in training, and in evaluation.
_BOX_FLOORS = {
    "metres": (FLOAT32_FLOOR, FLOAT32_FLOOR),
    "others": (_MAP_FLOOR, _MAP_FLOOR),
    "pixels": (_MAP_FLOOR, _PIXEL_FLOOR),
    "keypoints": (_MAP_FLOOR, _KEYPOINT_FLOOR),
}
_TOLERANCES = {
    "maps in training": _RELATIVE,
    "metres in training": _RELATIVE,
    "maps in evaluation": _RELATIVE,
    "metres in evaluation": _RELATIVE,
    "candidates, that are not the same": 0,
    "candidates, boxes": _RELATIVE,
    "candidates, footprints": _RELATIVE,
    "candidates, scores": _RELATIVE,
    "candidates, 2D boxes": _RELATIVE,
    "candidates, half turns that differ": 0,
    "candidates, attributes that differ": 0,
    "detections, that are not the same": 0,
    "detections, boxes": _RELATIVE,
    "detections, corners": _RELATIVE,
    "detections, scores": _RELATIVE,
    "detections, 2D boxes": _RELATIVE,
    "detections, attributes that differ": 0,
}
_NUSCENES_ONLY = ("candidates, attributes that differ", "detections, attributes that differ")


def compare(directory: Path) -> list[Row]:
    """Rows of heads/pgd_*_outputs_train.npz and heads/pgd_*_eval.npz.

    Args:
        directory: golden/mono.

    Returns:
        One row a quantity and case.

    Raises:
        FileNotFoundError: no case, or a case without one of its files.
    """
    return [
        dataclasses.replace(row, quantity=f"{name}: {row.quantity}")
        for name, case in pgd_cases(directory).items()
        for row in _compare(case.double(), _double(load_arrays(directory / "heads" / f"{name}_eval.npz")))
    ]


def _double(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.double() if value.is_floating_point() else value for key, value in arrays.items()}


def published_maps(outputs: DenseOutputs, strides: Sequence[int], training: bool) -> dict[str, list[Tensor]]:
    """A head's maps in the published layout.

    Args:
        outputs: of a head.
        strides: pixels to a cell, level by level.
        training: distances are in strides; in evaluation they are in pixels.

    Returns:
        Levels by the published name; a head's missing outputs are left out.
    """
    boxes = []
    for level, stride in enumerate(strides):
        unit = 1 if training else stride
        box = outputs.boxes[level]
        parts = [box[:, :2] * unit, box[:, 2:]]
        if outputs.keypoints is not None:
            parts.append(outputs.keypoints[level] * (1 if training else KEYPOINT_RANGE * stride))
        if outputs.boxes2d is not None:
            parts.append(outputs.boxes2d[level] * unit)
        boxes.append(torch.cat(parts, dim=1))
    maps = {
        "cls": outputs.logits,
        "bbox": boxes,
        "dir_cls": outputs.direction,
        "depth_cls": outputs.depth_bins,
        "weight": outputs.uncertainty,
        "attr": outputs.attributes,
        "centerness": outputs.centerness,
    }
    return {name: levels for name, levels in maps.items() if levels is not None}


@torch.no_grad()
@float64_twin()
def _compare(case: PGDCase, golden: Mapping[str, Tensor]) -> list[Row]:
    skipped = _NUSCENES_ONLY if case.is_kitti else ()
    differences = Differences(_TOLERANCES, required=set(_TOLERANCES) - set(skipped))
    head = case.head()
    outputs = head(case.features())
    maps = published_maps(outputs, case.strides, training=True)
    for name in MAPS:
        for ours, recorded in zip(maps.get(name, []), case.levels(name), strict=True):
            if name == "bbox":
                _compare_boxes(differences, "in training", ours, recorded)
            else:
                differences.add_close("maps in training", ours, recorded, _MAP_FLOOR)
    for level, ours in enumerate(published_maps(outputs, case.strides, training=False)["bbox"]):
        _compare_boxes(differences, "in evaluation", ours, golden[f"bbox_eval/{level}"])
    depth, _, _ = fused_depth(
        [level[:, 2:3] for level in outputs.boxes], outputs.depth_bins, head.fuse_lambda, BIN_SIZE
    )
    images, options = len(depth), _options(case)
    found = candidates_of(
        outputs,
        depth,
        cam2img=case.cam2img.expand(images, 4, 4),
        image_sizes=case.inputs["img_hw"].float().expand(images, 2),
        grid=DenseGrid.of_levels(case.shapes, case.strides, depth.device),
        options=options,
    )
    for index, candidates in enumerate(found):
        recorded = {
            key.removeprefix(f"img{index}/"): value
            for key, value in golden.items()
            if key.startswith(f"img{index}/")
        }
        _compare_candidates(differences, candidates, recorded)
        _compare_detections(differences, candidates, options, recorded)
    return differences.rows()


def _compare_boxes(differences: Differences, when: str, ours: Tensor, recorded: Tensor) -> None:
    """Maps of boxes: dx, dy, depth, three sizes, yaw[, velocity][, keypoints], four distances."""
    count = ours.shape[1]
    keypoints = range(7, 23) if count > 13 else range(0)
    columns = {
        "metres": range(2, 6),
        "keypoints": keypoints,
        "others": range(6, 7 if keypoints else 9),
        "pixels": [0, 1, *range(count - 4, count)],
    }
    if ours.shape != recorded.shape:
        differences.note(f"maps {when}", float("inf"))
        return
    for kind, picked in columns.items():
        if picked:
            quantity = f"metres {when}" if kind == "metres" else f"maps {when}"
            floor = _BOX_FLOORS[kind][when == "in evaluation"]
            differences.add_close(quantity, ours[:, list(picked)], recorded[:, list(picked)], floor)


def _options(case: PGDCase) -> DecodeOptions:
    kitti = case.is_kitti
    return DecodeOptions(
        direction_offset=DIRECTION_OFFSET,
        candidates_per_level=100 if kitti else 1000,
        nms_threshold=0.05 if kitti else 0.8,
        nms_inclusive=True,
        score_threshold=0.001 if kitti else 0.01,
        max_detections=20 if kitti else 200,
        depth_unit=BIN_SIZE,
    )


def _compare_candidates(
    differences: Differences, candidates: Candidates, recorded: Mapping[str, Tensor]
) -> None:
    assert candidates.boxes2d is not None
    boxes = _published_order(candidates.boxes)
    wanted = recorded["pre_nms_bboxes"]
    order, unmatched = _pairs(boxes, wanted)
    differences.note("candidates, that are not the same", unmatched)
    if order is None:
        return
    differences.add_close("candidates, boxes", boxes[order], wanted, FLOAT32_FLOOR)
    x, z, length, width, angle = candidates.boxes.bev()[order].unbind(dim=1)
    corners = [x - length / 2, z - width / 2, x + length / 2, z + width / 2, angle]
    differences.add_close(
        "candidates, footprints", torch.stack(corners, dim=1), recorded["pre_nms_bev_xyxyr"], FLOAT32_FLOOR
    )
    # The last column is the background's.
    scores = torch.nn.functional.pad(candidates.scores[order], (0, 1))
    differences.add_close("candidates, scores", scores, recorded["pre_nms_scores"], FLOAT32_FLOOR)
    differences.add_close(
        "candidates, 2D boxes", candidates.boxes2d[order], recorded["pre_nms_bboxes2d"], _BOX2D_FLOOR
    )
    half_turns = "candidates, half turns that differ"
    differences.add_unequal(half_turns, candidates.direction[order], recorded["pre_nms_dir"])
    if candidates.attributes is not None:
        attributes = "candidates, attributes that differ"
        differences.add_unequal(attributes, candidates.attributes[order], recorded["pre_nms_attr"])


def _compare_detections(
    differences: Differences,
    candidates: Candidates,
    options: DecodeOptions,
    recorded: Mapping[str, Tensor],
) -> None:
    found = select_detections(candidates, options)
    # A location can be found as several classes: the label counts for as much as a hundred metres.
    ours = torch.cat([found["boxes"].to_bottom(), 100.0 * found["labels"][:, None]], dim=1)
    wanted = torch.cat([recorded["bboxes_3d"], 100.0 * recorded["labels_3d"][:, None]], dim=1)
    order, unmatched = _pairs(ours, wanted)
    differences.note("detections, that are not the same", unmatched)
    if order is None:
        return
    differences.add_close("detections, boxes", ours[order], wanted, FLOAT32_FLOOR)
    boxes = found["boxes"][order]
    differences.add_close(
        "detections, boxes", boxes.center, recorded["bboxes_3d_gravity_center"], FLOAT32_FLOOR
    )
    differences.add_close("detections, corners", boxes.corners(), recorded["corners"], _CORNER_FLOOR)
    differences.add_close("detections, scores", found["scores"][order], recorded["scores_3d"], FLOAT32_FLOOR)
    differences.add_close(
        "detections, 2D boxes", found["boxes2d"][order], recorded["bboxes_2d"], _BOX2D_FLOOR
    )
    if "attributes" in found:
        attributes = "detections, attributes that differ"
        differences.add_unequal(attributes, found["attributes"][order], recorded["attr_labels"])


def _published_order(boxes: CameraBoxes3D) -> Tensor:
    """(N, 7 or 9) gravity centre, length, height, width, heading[, velocity]."""
    return torch.cat([boxes.center, boxes.tensor[:, [3, 5, 4]], boxes.tensor[:, 6:]], dim=1)


def _pairs(ours: Tensor, wanted: Tensor) -> tuple[Tensor | None, float]:
    """Our row of every recorded one, since nearly equal scores may come in another order.

    Returns:
        The indices, or None where the shapes differ; and how many rows of ours are nobody's.
    """
    if ours.shape != wanted.shape:
        return None, float("inf")
    distances = torch.cdist(wanted.to(ours), ours, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.argmin(dim=1)
    return nearest, float(len(ours) - len(nearest.unique()))
