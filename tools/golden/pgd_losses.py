"""Targets, losses and gradients of PGD's head, in its KITTI and its nuScenes setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from golden.report import Differences, Row
from torch import Tensor

from bevkd2.modeling.mono.assign import assign_locations
from bevkd2.modeling.mono.consistency import decoded_boxes2d, projected_extent
from bevkd2.modeling.mono.dense_losses import DenseCriterion
from bevkd2.modeling.mono.dense_outputs import DenseOutputs, locations_of
from bevkd2.modeling.mono.dense_positives import outputs_at
from bevkd2.modeling.mono.dense_targets import DenseTargets, dense_targets
from bevkd2.modeling.mono.depth import depth_from_bins
from bevkd2.modeling.mono.inputs import MonoTargets
from bevkd2.structures import CameraBoxes3D

_LOSS = 1e-5
_RELATIVE = 1e-4
_FLOOR = 1e-5
# Pixels up to 3,000 in float32, from another order of operations.
_PIXELS = 2e-3
_BINS_M = 10.0
_SCENARIOS = "ABC"
_PUBLISHED_LOSSES = {
    "loss_rotsin": "loss_rotation",
    "loss_velo": "loss_velocity",
    "loss_dir": "loss_direction",
    "loss_kpts": "loss_keypoints",
    "loss_bbox2d": "loss_boxes2d",
    "loss_attr": "loss_attribute",
}
_MAPS = ("cls", "bbox", "dir_cls", "depth_cls", "weight", "attr", "centerness")
_TOLERANCES = {
    "locations": 0,
    "labels of locations, those that differ": 0,
    "positives, indices that differ": 0,
    "regression targets": _RELATIVE,
    "centre-ness targets": _RELATIVE,
    "attribute targets, those that differ": 0,
    "direction targets, those that differ": 0,
    "keypoint targets": _RELATIVE,
    "boxes at the positives": _RELATIVE,
    "probabilistic depth": _RELATIVE,
    "2D boxes, pixels": _PIXELS,
    "projected 3D boxes, pixels": _PIXELS,
    "losses": _LOSS,
    "gradients of the head's maps": _RELATIVE,
    "gradient of fuse_lambda": _RELATIVE,
}
_NOT_EVERYWHERE = ("keypoint targets", "attribute targets, those that differ")


@dataclasses.dataclass(frozen=True)
class _Case:
    """The recordings of one run."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    train: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]

    @property
    def is_kitti(self) -> bool:
        """Whether it is the setting with an uncertainty and keypoints, and without velocities."""
        return "weight/0" in self.outputs

    @property
    def strides(self) -> list[int]:
        return self.inputs["strides"].tolist()

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [tuple(self.outputs[f"cls/{level}"].shape[-2:]) for level in range(len(self.strides))]

    @property
    def num_classes(self) -> int:
        return self.outputs["cls/0"].shape[1]

    def maps(self, name: str) -> list[Tensor] | None:
        """The levels of one recorded output; None where there is none."""
        if f"{name}/0" not in self.outputs:
            return None
        return [self.outputs[f"{name}/{level}"] for level in range(len(self.strides))]


def compare(directory: Path) -> list[Row]:
    """Rows of heads/pgd_*_train.npz.

    Args:
        directory: golden/mono.

    Returns:
        One row a quantity and case.

    Raises:
        FileNotFoundError: no case, or a case without one of its files.
    """
    cases = sorted((directory / "heads").glob("pgd_*_outputs_train.npz"))
    if not cases:
        raise FileNotFoundError(f"{directory / 'heads'} has no pgd_*_outputs_train.npz")
    rows = []
    for path in cases:
        name = path.name.removesuffix("_outputs_train.npz")
        rows += [dataclasses.replace(row, quantity=f"{name}: {row.quantity}") for row in _compare(path, name)]
    return rows


def _compare(path: Path, name: str) -> list[Row]:
    parts = ("inputs", "outputs_train", "train", "weights")
    inputs, outputs, train, weights = (_load(path.with_name(f"{name}_{part}.npz")) for part in parts)
    case = _Case(inputs, outputs, train, weights)
    differences = Differences(_TOLERANCES, required=set(_TOLERANCES) - set(_NOT_EVERYWHERE))
    _compare_locations(differences, case)
    for scenario in _SCENARIOS:
        targets = recorded_targets(case, scenario)
        _compare_targets(differences, case, scenario, targets)
        _compare_losses(differences, case, scenario, targets)
    _compare_positives(differences, case, recorded_targets(case, "A"))
    return differences.rows()


def _load(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def recorded_targets(case: _Case, scenario: str) -> MonoTargets:
    """The annotations of a scenario, assigned by this package."""

    def lists(key: str) -> list[Tensor]:
        return [case.inputs[f"{scenario}/img{image}/{key}"] for image in range(images)]

    images = len(case.outputs["cls/0"])
    cam2img = torch.eye(4)
    recorded = case.inputs["cam2img"]
    cam2img[: len(recorded), : len(recorded)] = recorded.float()
    targets = MonoTargets(
        boxes=[CameraBoxes3D.from_bottom(boxes) for boxes in lists("gt_bboxes_3d")],
        labels=lists("gt_labels"),
        boxes2d=lists("gt_bboxes"),
        centers2d=lists("gt_centers_2d"),
        depths=lists("gt_depths"),
        attributes=None if case.is_kitti else lists("gt_attr_labels"),
        image_sizes=case.inputs["img_hw"].float().expand(images, 2),
        cam2img=cam2img.expand(images, 4, 4),
        affine_augmented=torch.zeros(images, dtype=torch.bool),
    )
    first = (64, 128, 256) if case.is_kitti else (48, 96, 192, 384)
    ranges = list(zip((-1, *first), (*first, 1e8), strict=True))
    targets.assigned = assign_locations(targets, case.shapes, case.strides, ranges)
    return targets


def criterion(case: _Case, code_weights: str) -> DenseCriterion:
    """The published settings, by the recordings' name of the code weights."""
    if case.is_kitti:
        return DenseCriterion(strides=case.strides, box_code_weights=[1] * 7, depth_beta=3)
    depth = {"cw_base": 0.2, "cw_finetune": 1.0}[code_weights]
    return DenseCriterion(
        strides=case.strides,
        box_code_weights=[1, 1, depth, 1, 1, 1, 1, 0.05, 0.05],
        box2d_weight=0.2,
        consistency_depth="fused",
    )


def dense_outputs(maps: Mapping[str, list[Tensor] | None]) -> DenseOutputs:
    """The recorded maps, whose ``bbox`` holds boxes, keypoints and distances to the 2D box."""
    boxes = maps["bbox"]
    assert boxes is not None
    keypoints = maps["weight"] is not None
    columns = 7 if keypoints else 9
    return DenseOutputs(
        logits=maps["cls"],
        boxes=[level[:, :columns] for level in boxes],
        direction=maps["dir_cls"],
        centerness=maps["centerness"],
        depth_bins=maps["depth_cls"],
        uncertainty=maps["weight"],
        keypoints=[level[:, columns:-4] for level in boxes] if keypoints else None,
        boxes2d=[level[:, -4:] for level in boxes],
        attributes=maps["attr"],
    )


def _compare_locations(differences: Differences, case: _Case) -> None:
    points = torch.cat([case.train[f"points/{level}"] for level in range(len(case.strides))])
    differences.add("locations", locations_of(case.shapes, case.strides, points.device), points)


def _wanted(case: _Case, targets: MonoTargets) -> DenseTargets:
    return dense_targets(targets, case.shapes, case.strides, direction_offset=0.7854)


def _regression_targets(wanted: DenseTargets) -> Tensor:
    """(P, 11 or 13) in the recordings' order."""
    columns = [wanted.offset, wanted.depth[:, None], wanted.size, wanted.yaw[:, None]]
    if wanted.velocity is not None:
        columns.append(wanted.velocity)
    return torch.cat([*columns, wanted.boxes2d], dim=1)


def _recorded_order(case: _Case, wanted: DenseTargets) -> Tensor:
    """Indices that sort positives by level, then image, then cell."""
    level = torch.searchsorted(torch.tensor(case.strides), wanted.strides.long())
    return torch.from_numpy(np.lexsort((wanted.locations.numpy(), wanted.images.numpy(), level.numpy())))


def _compare_targets(differences: Differences, case: _Case, scenario: str, targets: MonoTargets) -> None:
    wanted = _wanted(case, targets)
    order = _recorded_order(case, wanted)
    labels = torch.full(targets.assigned.shape, case.num_classes)
    labels[wanted.images, wanted.locations] = wanted.labels
    attributes = torch.zeros(0) if wanted.attributes is None else wanted.attributes[order]
    cells = [rows * columns for rows, columns in case.shapes]
    levels = [f"{scenario}/target/{{}}/{level}" for level in range(len(cells))]

    def recorded(name: str) -> Tensor:
        return torch.cat([case.train[level.format(name)] for level in levels])

    ours = torch.cat([part.flatten() for part in labels.split(cells, dim=1)])
    differences.note("labels of locations, those that differ", _different(ours, recorded("labels")))
    positive = [(part.flatten() < case.num_classes).nonzero()[:, 0] for part in labels.split(cells, dim=1)]
    differences.note("positives, indices that differ", _different(torch.cat(positive), recorded("pos_index")))
    differences.add_close(
        "regression targets", _regression_targets(wanted)[order], recorded("bbox_pos"), _FLOOR
    )
    differences.add_close("centre-ness targets", wanted.centerness[order], recorded("centerness_pos"), _FLOOR)
    if wanted.attributes is not None:
        differences.note("attribute targets, those that differ", _different(attributes, recorded("attr_pos")))


def _different(ours: Tensor, golden: Tensor) -> float:
    return float((ours != golden).sum()) if ours.shape == golden.shape else float("inf")


def _compare_positives(differences: Differences, case: _Case, targets: MonoTargets) -> None:
    wanted = _wanted(case, targets)
    order = _recorded_order(case, wanted)
    outputs = dense_outputs({name: case.maps(name) for name in _MAPS})
    fuse_lambda = case.weights["fuse_lambda"]
    found = outputs_at(outputs, wanted, fuse_lambda, _BINS_M)
    golden = {key.removeprefix("A/pos/"): value for key, value in case.train.items() if "A/pos/" in key}
    ours = [found.boxes] + ([] if found.keypoints is None else [found.keypoints])
    differences.add_close(
        "boxes at the positives", torch.cat([*ours, found.boxes2d], dim=1)[order], golden["bbox_pred"], _FLOOR
    )
    differences.add_close(
        "regression targets", _regression_targets(wanted)[order], golden["bbox_target"], _FLOOR
    )
    direction = _different(wanted.direction[order], golden["dir_target"])
    differences.note("direction targets, those that differ", direction)
    bins = torch.cat([level.flatten(2) for level in outputs.depth_bins], dim=2)
    depth = depth_from_bins(bins[wanted.images, :, wanted.locations], _BINS_M)
    differences.add_close("probabilistic depth", depth[order], golden["prob_depth"], _FLOOR)
    differences.add("2D boxes, pixels", decoded_boxes2d(found, wanted)[order], golden["decoded_bbox2d_pred"])
    depth = found.boxes[:, 2] if case.is_kitti else found.depth
    extent, _ = projected_extent(found, wanted, depth, 0.7854)
    differences.add("projected 3D boxes, pixels", extent[order], golden["proj_bbox2d_pred"])
    if "kpts_target" in golden:
        keypoints, _ = wanted.keypoints(16.0)
        differences.add_close("keypoint targets", keypoints[order], golden["kpts_target"], _FLOOR)


def _compare_losses(differences: Differences, case: _Case, scenario: str, targets: MonoTargets) -> None:
    prefixes = {key.split("/")[1] for key in case.train if key.startswith(f"{scenario}/cw")}
    for weights in sorted(prefixes):
        leaves = {name: _leaves(case.maps(name)) for name in _MAPS}
        fuse_lambda = case.weights["fuse_lambda"].clone().requires_grad_()
        losses = criterion(case, weights)(dense_outputs(leaves), targets, fuse_lambda)
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
            differences.add_close("losses", losses[name], loss, atol=0 if loss else _LOSS)
        differences.add_close("losses", total, golden["total"], atol=0)
        if f"{scenario}/{weights}/grad_fuse_lambda" in case.train:
            total.backward()
            _compare_gradients(differences, case, f"{scenario}/{weights}", leaves, fuse_lambda)


def _leaves(maps: list[Tensor] | None) -> list[Tensor] | None:
    return None if maps is None else [level.clone().requires_grad_() for level in maps]


def _compare_gradients(
    differences: Differences,
    case: _Case,
    prefix: str,
    leaves: Mapping[str, list[Tensor] | None],
    fuse_lambda: Tensor,
) -> None:
    for name, levels in leaves.items():
        for level, leaf in enumerate(levels or ()):
            golden = case.train[f"{prefix}/grad_out/{name}/{level}"]
            assert leaf.grad is not None
            differences.add_close("gradients of the head's maps", leaf.grad, golden, _FLOOR)
    assert fuse_lambda.grad is not None
    golden = case.train[f"{prefix}/grad_fuse_lambda"]
    differences.add_close("gradient of fuse_lambda", fuse_lambda.grad, golden, _FLOOR)
