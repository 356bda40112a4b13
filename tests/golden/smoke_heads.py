"""SMOKE's head, coder, targets, losses and gradients on recorded features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bevkd2.checkpoint.import_smoke import from_published, to_published
from bevkd2.data.mono.affine import window_affine
from bevkd2.modeling.mono.grid import DenseGrid
from bevkd2.modeling.mono.inputs import MonoTargets
from bevkd2.modeling.mono.smoke.decode import SmokeCoder, detect
from bevkd2.modeling.mono.smoke.head import SmokeHead, SmokeOutputs
from bevkd2.modeling.mono.smoke.losses import SmokeLossWeights, disentangled_boxes, smoke_losses
from bevkd2.modeling.mono.smoke.targets import SmokeObjects, heatmap_targets, objects_of
from bevkd2.structures import CameraBoxes3D, project_points, wrap_angle
from tests.golden.report import FLOAT32_FLOOR, FLOAT32_RELATIVE, Differences, Row

CODER = SmokeCoder(
    depth_prior=(28.01, 16.32),
    size_priors=((0.88, 1.73, 0.67), (1.78, 1.70, 0.58), (3.88, 1.63, 1.53)),
    stride=4,
)
OVERLAP = 0.7
WEIGHTS = SmokeLossWeights()
# Absolute for cells, labels, the heat map and scores; relative, with the floors below, for the rest.
# Everything is float32.
TOLERANCES = {
    "outputs": FLOAT32_RELATIVE,
    "affines": FLOAT32_RELATIVE,
    "projected centres": FLOAT32_RELATIVE,
    "cells": 0,
    "objects that teach boxes": 0,
    "target boxes": 1e-5,
    "target corners": 1e-5,
    "heat map": 1e-5,
    "disentangled boxes": 1e-4,
    "disentangled headings (rad)": 1e-5,
    "disentangled corners": 1e-4,
    "losses": 1e-5,
    "gradients of outputs": 1e-4,
    "gradients of parameters": 1e-4,
    "gradients of parameters, sums": 1e-4,
    "gradients of features": 1e-4,
    "decoded boxes": 1e-4,
    "decoded headings (rad)": 1e-4,
    "decoded scores": 1e-5,
    "decoded labels": 0,
}
_FLOOR = FLOAT32_FLOOR
_FLOOR_OF_GRADIENTS = 1e-6
_MOST_PIXELS = 1e-3
# Numbers up to which a parameter's gradient is recorded in full.
_ALL_RECORDED = 5000
# The published sigmoid stays this far from 0 and 1.
_SCORE_MARGIN = 1e-4
_PARTS = {"ori": "orientation", "dim": "size", "loc": "location"}

Arrays = Mapping[str, Tensor]


def compare(directory: Path) -> list[Row]:
    """Rows of heads/smoke_*.npz, all cases together.

    Args:
        directory: golden/mono.

    Returns:
        One row a quantity.

    Raises:
        FileNotFoundError: no case, or a case without one of its files.
    """
    differences = Differences(TOLERANCES)
    found = sorted((directory / "heads").glob("smoke_*_outputs.npz"))
    if not found:
        raise FileNotFoundError(f"{directory / 'heads'} has no case: expected smoke_<name>_outputs.npz")
    for case in (path.name.removesuffix("_outputs.npz") for path in found):
        weights, inputs, golden = (
            _load(directory / "heads" / f"{case}_{part}.npz") for part in ("weights", "inputs", "outputs")
        )
        head = _head(weights)
        features = inputs["feat"].float().requires_grad_()
        outputs = head(features)
        _compare_outputs(outputs, golden, differences)
        targets = _targets(inputs, differences)
        objects = objects_of(targets, CODER.stride)
        heatmap = _compare_targets(objects, golden, differences)
        _compare_boxes(outputs, objects, targets, golden, differences)
        outputs.logits.retain_grad()
        outputs.codes.retain_grad()
        losses = smoke_losses(outputs, objects, heatmap, targets.cam2img, CODER, WEIGHTS)
        _compare_losses(losses, golden, differences)
        sum(losses.values()).backward()
        _compare_gradients(head, outputs, features, golden, differences)
        _compare_detections(outputs, targets, golden, differences)
    return differences.rows()


def _load(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _head(weights: Arrays) -> SmokeHead:
    published = {f"bbox_head.{key}": value for key, value in weights.items()}
    head = SmokeHead(weights["conv_cls_prev.0.conv.weight"].shape[1], len(weights["conv_cls.bias"]))
    state = from_published(published).state
    head.load_state_dict({key.removeprefix("head."): value for key, value in state.items()})
    return head


def _targets(inputs: Arrays, differences: Differences) -> MonoTargets:
    """The samples as the mapper would emit them: the affine is part of the calibration."""
    images = range(len(inputs["feat"]))
    cameras, boxes, projected = [], [], []
    for i in images:
        affine = torch.eye(4)
        affine[:3, :3] = inputs[f"img{i}/trans_affine"]
        cameras.append((affine.double() @ inputs["cam2img"]).float())
        boxes.append(CameraBoxes3D.from_bottom(inputs[f"img{i}/gt_bboxes_3d"]))
        projected.append(project_points(boxes[-1].center, cameras[-1]))
        for ours, name in zip(projected[-1], ("gt_centers_2d", "gt_depths"), strict=True):
            differences.add_close(
                "projected centres", ours, inputs[f"img{i}/{name}"], _FLOOR, at_most=_MOST_PIXELS
            )
        original = project_points(boxes[-1].center, inputs["cam2img"].float())[0]
        differences.add_close(
            "projected centres",
            original,
            inputs[f"img{i}/gt_centers_2d_original"],
            _FLOOR,
            at_most=_MOST_PIXELS,
        )
        window = window_affine(
            inputs[f"img{i}/aug_center"].tolist(),
            float(inputs[f"img{i}/aug_size"][0]),
            tuple(inputs["pad_shape"].tolist()),
        )
        differences.add_close("affines", torch.from_numpy(window), inputs[f"img{i}/trans_affine"], _FLOOR)
    return MonoTargets(
        boxes=boxes,
        labels=[inputs[f"img{i}/gt_labels"] for i in images],
        boxes2d=[inputs[f"img{i}/gt_bboxes"] for i in images],
        centers2d=[uv for uv, _ in projected],
        depths=[depth for _, depth in projected],
        attributes=None,
        image_sizes=inputs["pad_shape"].float().expand(len(images), 2),
        cam2img=torch.stack(cameras),
        grid=DenseGrid.of_image(tuple(inputs["pad_shape"].tolist()), [CODER.stride], "cpu"),
        affine_augmented=torch.stack([inputs[f"img{i}/affine_aug"] for i in images]),
    )


def _compare_outputs(outputs: SmokeOutputs, golden: Arrays, differences: Differences) -> None:
    differences.add_close("outputs", outputs.logits, golden["raw_cls_logits"], _FLOOR)
    scores = outputs.logits.sigmoid().clamp(_SCORE_MARGIN, 1 - _SCORE_MARGIN)
    differences.add_close("outputs", scores, golden["cls_score"], _FLOOR)
    differences.add_close("outputs", outputs.codes[:, :6], golden["bbox_pred"][:, :6], _FLOOR)
    # Sine and cosine at the length that they had: dividing a short pair by it enlarges every rounding.
    length = golden["raw_reg"][:, 6:].norm(dim=1, keepdim=True)
    differences.add_close("outputs", outputs.codes[:, 6:] * length, golden["raw_reg"][:, 6:], _FLOOR)


def _compare_targets(objects: SmokeObjects, golden: Arrays, differences: Differences) -> Tensor:
    """Returns our heat map."""
    real = golden["target/indices"]
    differences.add("cells", objects.cells, golden["target/gt_centers_2d"][real])
    differences.add("cells", objects.labels, golden["target/gt_labels_3d"].flatten()[real])
    differences.add("objects that teach boxes", objects.box_loss_mask, golden["target/reg_indices"])
    published = objects.boxes.to_bottom()
    differences.add_close("target boxes", published[:, :3], golden["target/gt_locs"][real], _FLOOR)
    differences.add_close("target boxes", published[:, 3:6], golden["target/gt_dims"], _FLOOR)
    differences.add_close("target boxes", published[:, 6:], golden["target/gt_yaws"], _FLOOR)
    differences.add_close("target corners", objects.boxes.corners(), golden["target/gt_cors"], _FLOOR)
    images, classes, *shape = golden["target/heatmap"].shape
    heatmap = heatmap_targets(objects, images, classes, tuple(shape), CODER.stride, OVERLAP)
    differences.add("heat map", heatmap, golden["target/heatmap"])
    differences.add("cells", (heatmap == 1).sum(), golden["target/avg_factor"])
    return heatmap


def _compare_boxes(
    outputs: SmokeOutputs,
    objects: SmokeObjects,
    targets: MonoTargets,
    golden: Arrays,
    differences: Differences,
) -> None:
    """The predicted boxes of all objects: recorded before those of augmented images are left out."""
    cells = objects.cells
    predicted = CODER.decode(
        outputs.codes[objects.rows, :, cells[:, 1], cells[:, 0]],
        cells,
        objects.labels,
        targets.cam2img[objects.rows],
        heading_centers=objects.boxes.center,
    )
    mixed = disentangled_boxes(predicted, objects.boxes)
    for short, name in _PARTS.items():
        ours, theirs = mixed[name], golden[f"pred/{short}_boxes"]
        _compare_published(
            ours.to_bottom(), theirs, "disentangled boxes", "disentangled headings (rad)", differences
        )
        corners = golden[f"pred/{short}_corners"]
        differences.add_close("disentangled corners", ours.corners(), corners, _FLOOR)


def _compare_published(
    ours: Tensor, golden: Tensor, boxes: str, headings: str, differences: Differences
) -> None:
    """Boxes in the published layout; headings are equal modulo a turn."""
    differences.add_close(boxes, ours[..., :6], golden[..., :6], _FLOOR)
    heading = golden[..., 6]
    turned = heading + wrap_angle(ours[..., 6] - heading)
    differences.add_close(headings, turned, heading, _FLOOR, at_most=TOLERANCES[headings])


def _compare_losses(losses: Arrays, golden: Arrays, differences: Differences) -> None:
    for short, name in _PARTS.items():
        differences.add_close("losses", losses[f"loss_{name}"], golden[f"loss/bbox_{short}"], atol=0)
    total = sum(losses[f"loss_{name}"] for name in _PARTS.values())
    differences.add_close("losses", total, golden["loss/loss_bbox"], atol=0)
    differences.add_close("losses", losses["loss_heatmap"], golden["loss/loss_cls"], atol=0)


def _compare_gradients(
    head: SmokeHead, outputs: SmokeOutputs, features: Tensor, golden: Arrays, differences: Differences
) -> None:
    score = outputs.logits.detach().sigmoid()
    of_logits = golden["grad/cls_score"] * score * (1 - score)
    differences.add_close("gradients of outputs", outputs.logits.grad, of_logits, _FLOOR_OF_GRADIENTS)
    differences.add_close(
        "gradients of outputs", outputs.codes.grad, golden["grad/bbox_pred"], _FLOOR_OF_GRADIENTS
    )
    of_parameters = to_published({f"head.{name}": p.grad for name, p in head.named_parameters()})
    for key, grad in of_parameters.items():
        name = key.removeprefix("bbox_head.")
        norm = golden[f"param_grad_l2/{name}"]
        differences.add_close("gradients of parameters", grad.double().norm(), norm, _FLOOR_OF_GRADIENTS)
        total, floor = golden[f"param_grad_sum/{name}"], _FLOOR * max(float(norm), 1)
        differences.add_close("gradients of parameters, sums", grad.double().sum(), total, floor)
        if grad.numel() <= _ALL_RECORDED:
            differences.add_close("gradients of parameters", grad, golden[f"param_grad/{name}"], _FLOOR)
    differences.add_close("gradients of features", features.grad, golden["feat_grad"], _FLOOR_OF_GRADIENTS)
    differences.add_close(
        "gradients of features", features.grad.double().norm(), golden["feat_grad_l2"], _FLOOR
    )


def _compare_detections(
    outputs: SmokeOutputs, targets: MonoTargets, golden: Arrays, differences: Differences
) -> None:
    """All peaks (gravity centres, published order of sizes), and those above the published threshold."""
    for threshold in (0.0, 0.25):
        found = detect(
            outputs,
            CODER,
            cam2img=targets.cam2img,
            image_sizes=targets.image_sizes,
            max_detections=golden["decode/scores"].shape[1],
            score_threshold=threshold,
        )
        for i, result in enumerate(found):
            published = result["boxes"].to_bottom()
            if threshold:
                boxes = golden[f"decode/img{i}/bboxes_3d"]
                scores, labels = golden[f"decode/img{i}/scores_3d"], golden[f"decode/img{i}/labels_3d"]
            else:
                published = torch.cat([result["boxes"].center, published[:, 3:]], dim=1)
                boxes = golden["decode/bboxes_gravity"][i]
                scores, labels = golden["decode/scores"][i], golden["decode/labels"][i]
            differences.add("decoded scores", result["scores"], scores)
            differences.add("decoded labels", result["labels"], labels)
            if len(published) != len(boxes):
                differences.note("decoded boxes", float("inf"))
                continue
            _compare_published(published, boxes, "decoded boxes", "decoded headings (rad)", differences)
