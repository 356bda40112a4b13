"""Targets, losses and gradients of PGD's head, in its KITTI and its nuScenes setting."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bevkd2.checkpoint.import_fcos3d import to_published
from bevkd2.modeling.mono.depth import depth_from_bins
from bevkd2.modeling.mono.fcos3d.consistency import decoded_boxes2d, projected_extent
from bevkd2.modeling.mono.fcos3d.targets import DenseTargets, dense_targets, outputs_at
from bevkd2.modeling.mono.grid import DenseGrid
from bevkd2.modeling.mono.inputs import MonoTargets
from tests.golden.pgd_case import (
    BIN_SIZE,
    DIRECTION_OFFSET,
    KEYPOINT_RANGE,
    MAPS,
    PGDCase,
    dense_outputs,
    pgd_cases,
)
from tests.golden.report import FLOAT32_FLOOR, FLOAT32_RELATIVE, Differences, Row
from tests.tolerance import float64_twin

_LOSS = 1e-5
_RELATIVE = FLOAT32_RELATIVE
_FLOOR = FLOAT32_FLOOR
_GRADIENT_FLOOR = 1e-6
# Our gradients of parameters are computed in float64, so that they are the same on any machine; what differs
# is the rounding of the recordings, which are in float32. Sums over all 27,000 locations cancel out in part:
# those of a tower's parameter are measured by the gradient's length, and so are those of the class branch,
# whose every location has a loss.
_TOWER_DISTANCE = 1e-3
# The gradient of a sampling offset jumps where the location crosses a pixel: ours in float32 is 1.45e-3 away
# from ours in float64, most of it at one location of 25,600, and so is the recording.
_OFFSETS_DISTANCE = 2e-3
_TOWERS = ("cls_convs.", "reg_convs.")
_CLASS_BRANCH = "conv_cls_prev."
_OFFSETS = ".conv_offset."
# Numbers up to which a parameter's gradient is recorded in full.
_ALL_RECORDED = 5000
_PUBLISHED_LOSSES = {
    "loss_rotsin": "loss_rotation",
    "loss_velo": "loss_velocity",
    "loss_dir": "loss_direction",
    "loss_kpts": "loss_keypoints",
    "loss_bbox2d": "loss_boxes2d",
    "loss_attr": "loss_attribute",
}
_TOLERANCES = {
    "locations": 0,
    "labels of locations, those that differ": 0,
    "positives, indices that differ": 0,
    "positives, locations": 0,
    "regression targets": _RELATIVE,
    "centre-ness targets": _RELATIVE,
    "attribute targets, those that differ": 0,
    "direction targets, those that differ": 0,
    "keypoint targets": _RELATIVE,
    "boxes at the positives": _RELATIVE,
    "probabilistic depth": _RELATIVE,
    "2D boxes, pixels": _RELATIVE,
    "projected 3D boxes, pixels": _RELATIVE,
    "losses": _LOSS,
    "gradients of the head's maps": _RELATIVE,
    "gradient of fuse_lambda": _RELATIVE,
    "gradients of branches": _RELATIVE,
    "gradients of branches, sums": _RELATIVE,
    "gradients of the class branch, distance": _RELATIVE,
    "gradients of the class branch, sums": _RELATIVE,
    "gradients of offsets, distance": _OFFSETS_DISTANCE,
    "gradients of towers, distance": _TOWER_DISTANCE,
    "gradients of towers, sums": _TOWER_DISTANCE,
    "gradients of parameters, lengths": _RELATIVE,
    "gradients of features": _RELATIVE,
    "gradients of features, lengths": _RELATIVE,
}
_NOT_EVERYWHERE = ("keypoint targets", "attribute targets, those that differ")


def compare(directory: Path) -> list[Row]:
    """Rows of heads/pgd_*_train.npz.

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
        for row in _compare(case)
    ]


def _compare(case: PGDCase) -> list[Row]:
    differences = Differences(_TOLERANCES, required=set(_TOLERANCES) - set(_NOT_EVERYWHERE))
    _compare_locations(differences, case)
    for scenario in case.scenarios:
        targets = case.targets(scenario)
        _compare_targets(differences, case, scenario, targets)
        _compare_losses(differences, case, scenario, targets)
    targets = case.targets(case.detailed)
    _compare_positives(differences, case, targets)
    _compare_head(differences, case)
    return differences.rows()


def _compare_locations(differences: Differences, case: PGDCase) -> None:
    points = torch.cat([case.train[f"points/{level}"] for level in range(len(case.strides))])
    differences.add(
        "locations", DenseGrid.of_levels(case.shapes, case.strides, points.device).locations, points
    )


def _wanted(case: PGDCase, targets: MonoTargets) -> DenseTargets:
    return dense_targets(targets, DIRECTION_OFFSET)


def _regression_targets(wanted: DenseTargets) -> Tensor:
    """(P, 11 or 13) in the recordings' order."""
    columns = [wanted.offset, wanted.depth[:, None], wanted.size, wanted.yaw[:, None]]
    if wanted.velocity is not None:
        columns.append(wanted.velocity)
    return torch.cat([*columns, wanted.boxes2d], dim=1)


def _recorded_order(case: PGDCase, wanted: DenseTargets) -> Tensor:
    """Indices that sort positives by level, then image, then cell."""
    level = torch.searchsorted(torch.tensor(case.strides), wanted.strides.long())
    return torch.from_numpy(np.lexsort((wanted.locations.numpy(), wanted.images.numpy(), level.numpy())))


def _compare_targets(differences: Differences, case: PGDCase, scenario: str, targets: MonoTargets) -> None:
    wanted = _wanted(case, targets)
    order = _recorded_order(case, wanted)
    labels = torch.full(targets.assigned.shape, case.num_classes)
    labels[wanted.images, wanted.locations] = wanted.labels
    cells = [rows * columns for rows, columns in case.shapes]
    levels = [f"{scenario}/target/{{}}/{level}" for level in range(len(cells))]

    def recorded(name: str) -> Tensor:
        return torch.cat([case.train[level.format(name)] for level in levels])

    ours = torch.cat([part.flatten() for part in labels.split(cells, dim=1)])
    differences.add_unequal("labels of locations, those that differ", ours, recorded("labels"))
    positive = [(part.flatten() < case.num_classes).nonzero()[:, 0] for part in labels.split(cells, dim=1)]
    differences.add_unequal("positives, indices that differ", torch.cat(positive), recorded("pos_index"))
    if scenario == case.detailed:
        flat = (ours < case.num_classes).nonzero()[:, 0]
        differences.add_unequal(
            "positives, indices that differ", flat, case.train[f"{scenario}/pos/flat_index"]
        )
    differences.add_close(
        "regression targets", _regression_targets(wanted)[order], recorded("bbox_pos"), _FLOOR
    )
    differences.add_close("centre-ness targets", wanted.centerness[order], recorded("centerness_pos"), _FLOOR)
    if wanted.attributes is not None:
        attributes = wanted.attributes[order]
        differences.add_unequal("attribute targets, those that differ", attributes, recorded("attr_pos"))


def _compare_positives(differences: Differences, case: PGDCase, targets: MonoTargets) -> None:
    wanted = _wanted(case, targets)
    order = _recorded_order(case, wanted)
    outputs = dense_outputs({name: case.levels(name) for name in MAPS})
    fuse_lambda = case.weights["fuse_lambda"]
    found = outputs_at(outputs, wanted, fuse_lambda, BIN_SIZE)
    prefix = f"{case.detailed}/pos/"
    golden = {key.removeprefix(prefix): value for key, value in case.train.items() if key.startswith(prefix)}
    differences.add("positives, locations", wanted.points[order], golden["points"])
    ours = [found.boxes] + ([] if found.keypoints is None else [found.keypoints])
    differences.add_close(
        "boxes at the positives", torch.cat([*ours, found.boxes2d], dim=1)[order], golden["bbox_pred"], _FLOOR
    )
    differences.add_close(
        "regression targets", _regression_targets(wanted)[order], golden["bbox_target"], _FLOOR
    )
    directions = "direction targets, those that differ"
    differences.add_unequal(directions, wanted.direction[order], golden["dir_target"])
    bins = torch.cat([level.flatten(2) for level in outputs.depth_bins], dim=2)
    depth = depth_from_bins(bins[wanted.images, :, wanted.locations], BIN_SIZE)
    differences.add_close("probabilistic depth", depth[order], golden["prob_depth"], _FLOOR)
    differences.add_close(
        "2D boxes, pixels", decoded_boxes2d(found, wanted)[order], golden["decoded_bbox2d_pred"], _FLOOR
    )
    depth = found.boxes[:, 2] if case.is_kitti else found.depth
    extent, _ = projected_extent(found, wanted, depth, DIRECTION_OFFSET)
    differences.add_close("projected 3D boxes, pixels", extent[order], golden["proj_bbox2d_pred"], _FLOOR)
    if case.is_kitti:
        keypoints, _ = wanted.keypoints(KEYPOINT_RANGE)
        differences.add_close("keypoint targets", keypoints[order], golden["kpts_target"], _FLOOR)


def _compare_losses(differences: Differences, case: PGDCase, scenario: str, targets: MonoTargets) -> None:
    for number, weights in enumerate(case.code_weights):
        leaves = {name: _leaves(case.levels(name)) for name in MAPS}
        fuse_lambda = case.weights["fuse_lambda"].clone().requires_grad_()
        losses = case.criterion(weights)(dense_outputs(leaves), targets, fuse_lambda)
        total = torch.stack(list(losses.values())).sum()
        golden = {
            key.split("/")[2]: value
            for key, value in case.train.items()
            if key.startswith(f"{scenario}/{weights}/") and key.count("/") == 2
        }
        expected = {_PUBLISHED_LOSSES.get(key, key): value for key, value in golden.items() if "loss" in key}
        if set(expected) != set(losses):
            raise KeyError(f"losses {sorted(losses)} and recorded {sorted(expected)} differ")
        for name, loss in expected.items():
            differences.add_close("losses", losses[name], loss, atol=0)
        differences.add_close("losses", total, golden["total"], atol=0)
        if scenario == case.detailed and number == 0:
            total.backward()
            _compare_gradients(differences, case, f"{scenario}/{weights}", leaves, fuse_lambda)


def _leaves(maps: Sequence[Tensor]) -> list[Tensor]:
    return [level.clone().requires_grad_() for level in maps]


def _compare_gradients(
    differences: Differences,
    case: PGDCase,
    prefix: str,
    leaves: Mapping[str, list[Tensor]],
    fuse_lambda: Tensor,
) -> None:
    for name, levels in leaves.items():
        for level, leaf in enumerate(levels):
            golden = case.train[f"{prefix}/grad_out/{name}/{level}"]
            assert leaf.grad is not None
            differences.add_close("gradients of the head's maps", leaf.grad, golden, _GRADIENT_FLOOR)
    assert fuse_lambda.grad is not None
    golden = case.train[f"{prefix}/grad_fuse_lambda"]
    differences.add_close("gradient of fuse_lambda", fuse_lambda.grad, golden, _GRADIENT_FLOOR)


def head_gradients(case: PGDCase) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Returns the gradients through the whole head, in float64, for the first set of code weights.

    Args:
        case: of which the recorded targets, losses and gradients are not read.

    Returns:
        The gradients of the head's parameters by published name, and of its features by level.
    """
    with float64_twin():
        twin = case.double()
        head, features = twin.head(), _leaves(twin.features())
        targets = twin.targets(case.detailed)
        losses = twin.criterion(case.code_weights[0])(head(features), targets, head.fuse_lambda)
        torch.stack(list(losses.values())).sum().backward()
    ours = to_published({f"head.{name}": weight.grad for name, weight in head.named_parameters()})
    return ours, [feature.grad for feature in features if feature.grad is not None]


def _compare_head(differences: Differences, case: PGDCase) -> None:
    ours, of_features = head_gradients(case)
    recorded = {key for key in case.train if key.startswith(f"{case.detailed}/param_grad_l2/")}
    if recorded != {f"{case.detailed}/param_grad_l2/{key.removeprefix('bbox_head.')}" for key in ours}:
        raise KeyError(f"gradients of {len(recorded)} parameters are recorded, the head has {len(ours)}")
    for key, gradient in ours.items():
        _compare_parameter(differences, case, key.removeprefix("bbox_head."), gradient)
    assert len(of_features) == len(case.strides)
    for level, gradient in enumerate(of_features):
        length = case.train[f"{case.detailed}/feat_grad_l2/{level}"]
        differences.add_close("gradients of features, lengths", gradient.norm(), length, _FLOOR)
        if level >= 2:  # the coarser levels are recorded in full
            golden = case.train[f"{case.detailed}/feat_grad/{level}"]
            differences.add_close("gradients of features", gradient, golden, _FLOOR)


def _compare_parameter(differences: Differences, case: PGDCase, name: str, gradient: Tensor) -> None:
    assert gradient.dtype == torch.float64, name
    length, total = (case.train[f"{case.detailed}/param_grad_{kind}/{name}"] for kind in ("l2", "sum"))
    differences.add_close("gradients of parameters, lengths", gradient.norm(), length, _FLOOR)
    recorded = case.train[f"{case.detailed}/param_grad/{name}"] if gradient.numel() <= _ALL_RECORDED else None
    if not name.startswith((*_TOWERS, _CLASS_BRANCH)):
        floor = _FLOOR * max(float(length), 1)
        differences.add_close("gradients of branches, sums", gradient.sum(), total, floor)
        if recorded is not None:
            differences.add_close("gradients of branches", gradient, recorded, _FLOOR)
        return
    part = "the class branch" if name.startswith(_CLASS_BRANCH) else "towers"
    scale = math.sqrt(gradient.numel()) * max(float(length), _FLOOR)
    differences.add(f"gradients of {part}, sums", gradient.sum(), total, scale)
    if recorded is not None:
        distance = float((gradient - recorded).norm()) / max(float(recorded.double().norm()), _FLOOR)
        differences.note(f"gradients of {'offsets' if _OFFSETS in name else part}, distance", distance)
