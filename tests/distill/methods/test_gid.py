"""GID against its formula with loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from bevkd2.modeling.knowledge import MonoKnowledge
from bevkd2.structures import CameraBoxes3D
from tests.distill.methods.harness import build_pair, distill_losses, make_batch

SETTINGS = {"LEAST_SIDE": 4.0, "INSTANCES": 3, "ADAPTER": "conv1x1"}


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    width = float(min(a[2], b[2]) - max(a[0], b[0]))
    height = float(min(a[3], b[3]) - max(a[1], b[1]))
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (a, b)]
    return shared / (sum(areas) - shared)


def naive_instances(ours, theirs, row: int) -> list[torch.Tensor]:
    """Sorts the locations of an image by the difference of their scores, and suppresses one after another."""
    scored = []
    for location in range(ours.logits.shape[1]):
        student = ours.logits[row, location].sigmoid()
        teacher = theirs.logits[row, location].sigmoid()
        best = int((teacher - student).abs().argmax())
        box = (theirs if teacher[best] > student[best] else ours).boxes2d[row, location]
        if min(float(box[2] - box[0]), float(box[3] - box[1])) > SETTINGS["LEAST_SIDE"]:
            scored.append((float((teacher - student).abs().max()), box))
    kept: list[torch.Tensor] = []
    for _, box in sorted(scored, key=lambda pair: -pair[0]):
        if all(overlap(box, other) <= 0.3 for other in kept):
            kept.append(box)
    return kept[: SETTINGS["INSTANCES"]]


def level_of(box: torch.Tensor, strides: list[int]) -> int:
    side = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
    wanted = math.floor(4 + math.log2(side / 224) + 1e-6)
    distances = [abs(wanted - math.log2(stride)) for stride in strides]
    return distances.index(min(distances))


def scaled_distances(embeddings: torch.Tensor) -> list[list[float]]:
    values = [[(a - b).norm().item() for b in embeddings] for a in embeddings]
    positive = [value for line in values for value in line if value > 0]
    mean = sum(positive) / len(positive)
    return [[value / mean for value in line] for line in values]


@pytest.mark.parametrize("detector", ["PGD", "SMOKE"])
def test_it_is_its_formula(detector: str) -> None:
    model = build_pair(detector, "GID", **SETTINGS)
    if detector == "PGD":  # 2D boxes two strides wide, not none
        for head in (model.student.head, model.teacher.head):
            torch.nn.init.ones_(head.regressors["boxes2d"].out.bias)
    batch = make_batch(detector, 1, 2)
    found = {name.rsplit("_", 1)[1]: loss.item() for name, loss in distill_losses(model, batch).items()}
    student, teacher, method = model.student.train(), model.teacher, model.methods["GID"]
    inputs = student.preprocess(batch)
    wants = frozenset({"logits", "boxes", "boxes2d", "fpn"})
    with torch.no_grad():
        ours, theirs = student.extract(inputs, wants), teacher.extract(inputs, wants)
        maps = [adapter(level) for adapter, level in zip(method.adapters, ours.fpn, strict=True)]
    grid, pooled, chosen = ours.grid, [], torch.zeros(ours.logits.shape[:2], dtype=torch.bool)
    for row in range(2):
        for box in naive_instances(ours, theirs, row):
            level = level_of(box, grid.strides)
            region, stride = [box[None]], grid.strides[level]
            pooled.append(
                [
                    roi_align(features[level][row : row + 1], region, 10, 1 / stride, 2, True)[0].double()
                    for features in (maps, theirs.fpn)
                ]
            )
            x, y = float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2
            for location, (u, v) in enumerate(grid.locations.tolist()):
                near = max(abs(u - x), abs(v - y)) <= 1.5 * stride
                inside = box[0] < u < box[2] and box[1] < v < box[3]
                if near and inside and grid.location_strides[location] == stride:
                    chosen[row, location] = True
    count = len(pooled)
    assert count >= 4 and 0 < int(chosen.sum()) < chosen.numel()
    features = sum((a - b).square().sum().item() for a, b in pooled) / (100 * count)
    student_d, teacher_d = (
        scaled_distances(torch.stack([pair[i].flatten() for pair in pooled])) for i in range(2)
    )
    relation = sum(
        F.smooth_l1_loss(torch.tensor(a), torch.tensor(b)).item()
        for line, other in zip(student_d, teacher_d, strict=True)
        for a, b in zip(line, other, strict=True)
    ) / (count * (count - 1))
    classes = boxes = 0.0
    for row, location in chosen.nonzero().tolist():
        wanted, logits = theirs.logits[row, location].double().sigmoid(), ours.logits[row, location].double()
        entropy = F.binary_cross_entropy(wanted, wanted, reduction="sum").item()
        classes += F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum").item() - entropy
        corners = [CameraBoxes3D(known.boxes[row, location][None]).corners() for known in (ours, theirs)]
        boxes += F.smooth_l1_loss(*corners, beta=0.1).item()
    expected = {
        "features": 5e-4 * features,
        "relation": 40 * relation,
        "classes": 0.1 * classes / int(chosen.sum()),
        "boxes": boxes / int(chosen.sum()),
    }
    assert found == pytest.approx(expected, rel=2e-3)


def test_without_instances_all_losses_are_zero_with_a_gradient() -> None:
    model = build_pair("PGD", "GID", LEAST_SIDE=1000.0)
    losses = distill_losses(model, make_batch("PGD", 1, 2))
    sum(losses.values()).backward()
    assert all(loss.item() == 0 for loss in losses.values())
    gradients = [p.grad for p in model.student.neck.parameters() if p.grad is not None]
    assert gradients and all(bool((gradient == 0).all()) for gradient in gradients)


def test_one_adapter_serves_all_levels_and_is_saved_once_trained() -> None:
    method = build_pair("PGD", "GID").methods["GID"]
    assert method.adapters[0] is method.adapters[1]
    assert len(list(method.parameters())) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [("INSTANCES", 0), ("NMS_THRESHOLD", 1.0), ("RADIUS", 0.0), ("SOURCES", ["backbone.res3"])],
)
def test_settings_that_cannot_be_are_errors_that_name_the_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"DISTILL\.GID\.{key}"):
        build_pair("PGD", "GID", **{key: value})


def test_detectors_of_object_queries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"DISTILL\.GID: .*dense detectors"):
        build_pair("BEVFormer", "GID")


@pytest.mark.parametrize("width", [20.0, float("nan"), float("inf")])
def test_boxes_that_are_not_finite_are_no_instances(width: float) -> None:
    method = build_pair("PGD", "GID", LEAST_SIDE=4.0).methods["GID"]
    boxes = torch.tensor([[[0.0, 0.0, width, 20.0], [-width, 0.0, width, 20.0]]])
    ours, theirs = (
        MonoKnowledge(logits=torch.full((1, 2, 3), logit), boxes2d=boxes) for logit in (-1.0, 1.0)
    )
    found = method.find(ours, theirs, torch.ones(1, 2, dtype=torch.bool))
    assert len(found.boxes) == (1 if width == 20.0 else 0)  # one suppresses the other


def test_a_teacher_of_nan_gives_a_loss_of_nan() -> None:
    model = build_pair("PGD", "GID")
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.fill_(float("nan"))
    losses = distill_losses(model, make_batch("PGD", 1))
    assert any(bool(loss.isnan()) for loss in losses.values())
