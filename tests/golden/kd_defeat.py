"""DeFeat: masks, losses of necks, backbones and class predictions, and their gradients.

Recorded variants that the method does not have are not compared: the L1 form of the neck's loss, the binary
cross entropy of proposals, and the KL of all or of correctly classified ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bevkd2.distill.masks import draw_masks
from bevkd2.modeling import Knowledge, MonoKnowledge
from bevkd2.modeling.mono.grid import DenseGrid
from tests.golden.kd_case import (
    Case,
    RecordedObjects,
    build,
    gradients,
    leaves,
    listed,
    load,
    shapes_of,
    total,
)
from tests.golden.report import Differences, Row

_RELATIVE = 1e-5  # losses were summed in single precision
_FLOOR = 1e-8
_FINEST = 4  # stride of the neck's finest level, on whose scale objects are assigned to levels
_NECK, _BACKBONE, _HEAD = "DeFeat: neck", "DeFeat: backbone", "DeFeat: class predictions"
_CASES = {
    "neck_gt_noadapt": {"BACKGROUND_WEIGHT": 0.0},
    "neck_decouple_adapt": {},
    "neck_decouple_noadapt": {},
}
_BACKBONE_CASES = {"bb_gt_noadapt": {"BACKBONE_BACKGROUND_WEIGHT": 0.0}, "bb_decouple_adapt": {}}
_HEAD_CASES = {
    "head_KL-fore": {"CLASS_BACKGROUND_WEIGHT": 0.0},
    "head_KL-back": {"CLASS_FOREGROUND_WEIGHT": 0.0},
    "head_KL-decouple": {},
    "head_KL-decouple_T2": {"TEMPERATURE": 2.0},
}


def compare(directory: Path) -> list[Row]:
    """Rows of kd/defeat_losses.npz.

    Args:
        directory: golden/mono.

    Returns:
        One row a quantity.
    """
    arrays = load(directory / "kd" / "defeat_losses.npz")
    names = [_NECK, _BACKBONE, _HEAD]
    tolerances = {"DeFeat: masks": 0.0} | dict.fromkeys(names, _RELATIVE)
    differences = Differences(tolerances | {f"{name}, gradients": _RELATIVE * 10 for name in names})
    for case, settings in _CASES.items():
        _compare_neck(differences, arrays, case, settings)
    for case, settings in _BACKBONE_CASES.items():
        _compare_backbone(differences, arrays, case, settings)
    for case, settings in _HEAD_CASES.items():
        _compare_head(differences, arrays, case, settings)
    return differences.rows()


def _compare_neck(differences: Differences, arrays: Case, case: str, settings: dict[str, Any]) -> None:
    student, teacher = leaves(listed(arrays, "neck_s")), listed(arrays, "neck_t")
    strides = [_FINEST * 2**level for level in range(len(student))]
    adapted = case.endswith("_adapt")
    method = build(
        "DeFeat",
        shapes_of([(maps.shape[1], stride) for maps, stride in zip(student, strides, strict=True)]),
        shapes_of([(maps.shape[1], stride) for maps, stride in zip(teacher, strides, strict=True)]),
        HEAD="off",
        ADAPTER="conv3x3" if adapted else "none",
        **settings,
    )
    if adapted:
        _load_adapters(method, arrays, "neck_adapt")
    objects, sizes = _objects(arrays, student[0], _FINEST)
    known = [Knowledge(fpn=maps, fpn_strides=strides, image_sizes=sizes) for maps in (student, teacher)]
    masks = draw_masks(
        method.sources,
        [(maps.shape[2], maps.shape[3]) for maps in student],
        known[0],
        objects,
        "foreground",
        rounding="truncated",
        one_level=True,
    )
    for mask, golden in zip(masks, listed(arrays, "neck_mask"), strict=True):
        differences.add("DeFeat: masks", mask, golden)
    loss = total(method(*known, objects))
    differences.add_close(_NECK, loss, arrays[f"{case}/loss"], _FLOOR)
    found = gradients(loss, student)
    for level, gradient in enumerate(found):
        if f"{case}/grad_neck_s/{level}" in arrays:
            golden = arrays[f"{case}/grad_neck_s/{level}"]
            _add_gradient(differences, _NECK, gradient, golden)
    norms = torch.stack([gradient.norm() for gradient in found])
    _add_gradient(differences, _NECK, norms, arrays[f"{case}/grad_neck_l2"])


def _compare_backbone(differences: Differences, arrays: Case, case: str, settings: dict[str, Any]) -> None:
    maps_s, maps_t = listed(arrays, "bb_s"), listed(arrays, "bb_t")
    # The recorded loss leaves the first stages out.
    first = len(maps_s) - len(arrays[f"{case}/grad_bb_l2"])
    stages = {f"res{2 + i}": i for i in range(first, len(maps_s))}
    adapted = case.endswith("_adapt")

    def shapes(maps: list[Tensor]) -> Any:
        backbone = {name: (maps[i].shape[1], _FINEST * 2**i) for name, i in stages.items()}
        return shapes_of([(1, _FINEST)], backbone)

    method = build(
        "DeFeat",
        shapes(maps_s),
        shapes(maps_t),
        SOURCES=[f"backbone.{name}" for name in stages],
        HEAD="off",
        ADAPTER="conv3x3" if adapted else "none",
        **settings,
    )
    if adapted:
        _load_adapters(method, arrays, "bb_adapt")
    objects, sizes = _objects(arrays, maps_s[0], _FINEST)
    student = leaves([maps_s[i] for i in stages.values()])
    known = [
        Knowledge(backbone=dict(zip(stages, maps, strict=True)), image_sizes=sizes)
        for maps in (student, [maps_t[i] for i in stages.values()])
    ]
    loss = total(method(*known, objects))
    differences.add_close(_BACKBONE, loss, arrays[f"{case}/loss"], _FLOOR)
    norms = torch.stack([gradient.norm() for gradient in gradients(loss, student)])
    _add_gradient(differences, _BACKBONE, norms, arrays[f"{case}/grad_bb_l2"])


def _compare_head(differences: Differences, arrays: Case, case: str, settings: dict[str, Any]) -> None:
    (student,), teacher, labels = leaves([arrays["cls_s"][None]]), arrays["cls_t"][None], arrays["labels"]
    count = labels.numel()
    grid = DenseGrid.of_levels([(1, count)], [1], "cpu")
    shapes = shapes_of([(1, 1)])
    method = build("DeFeat", shapes, shapes, CLASS_DISTANCE="softmax_kl", ADAPTER="none", **settings)
    sizes = torch.tensor([[1.0, float(count)]])
    blank = torch.zeros(1, 1, 1, count, dtype=torch.float64)
    known = [
        MonoKnowledge(fpn=[blank], fpn_strides=[1], image_sizes=sizes, logits=logits, grid=grid)
        for logits in (student, teacher)
    ]
    assigned = torch.where(labels < labels.max(), 0, -1)[None]  # the largest label is the background's
    objects = RecordedObjects([torch.zeros(0, 4)], assigned)
    loss = total(method(*known, objects))
    differences.add_close(_HEAD, loss, arrays[f"{case}/loss"], _FLOOR)
    (gradient,) = gradients(loss, [student])
    _add_gradient(differences, _HEAD, gradient[0], arrays[f"{case}/grad_cls_s"])


def _add_gradient(differences: Differences, name: str, ours: Tensor, golden: Tensor) -> None:
    differences.add(f"{name}, gradients", ours, golden, max(float(golden.abs().max()), 1e-12))


def _objects(arrays: Case, finest: Tensor, stride: int) -> tuple[RecordedObjects, Tensor]:
    rows, _, height, width = finest.shape
    boxes = [boxes.float() for boxes in listed(arrays, "gt_bboxes")]
    return RecordedObjects(boxes), torch.tensor([[float(height * stride), float(width * stride)]]).expand(
        rows, 2
    )


def _load_adapters(method: Any, arrays: Case, name: str) -> None:
    method.load_state_dict(
        {
            f"adapters.{i}.{kind}" if name == "neck_adapt" else f"adapters.{i}.0.{kind}": arrays[
                f"{name}/{i}.0.{kind}"
            ]
            for i in range(len(method.sources))
            for kind in ("weight", "bias")
        }
    )
