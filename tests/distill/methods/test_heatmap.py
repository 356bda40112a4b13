"""Heat map distillation against loops over cells: maps, masks, distances, errors."""

import math

import pytest
import torch

from bevkd2.modeling.bev.inputs import BEVTargets
from bevkd2.modeling.knowledge import BEVKnowledge
from bevkd2.structures import Boxes3D
from tests.distill.methods.harness import build_pair, detector_cfg
from tests.distill.methods.inputs import (
    bev_shapes,
    build_method,
    dense_knowledge,
    fpn_shapes,
    gradient,
    normal,
)

B, K, GRID = 2, 3, (4, 6)
BEV_HEAD = ("MODEL.BEVFORMER.AUX.BEV_HEATMAP_WEIGHT", 1.0)
IMAGE_HEAD = ("MODEL.BEVFORMER.AUX.IMAGE_HEATMAP_WEIGHT", 1.0)
# Of one cell each, so that the Gaussian is 1 there and 0 elsewhere.
BOXES = torch.tensor(
    [[[1.5, 0.5, 0.0, 0.5, 0.5, 1.0, 0.0, 0.0, 0.0], [-2.5, -1.5, 0.0, 0.5, 0.5, 1.0, 0.0, 0.0, 0.0]]]
)
AT = {(0, 2, 4), (0, 0, 0)}


def targets(*boxes):
    return BEVTargets(
        boxes=[Boxes3D(rows) for rows in boxes],
        labels=[],
        codes=[],
        lidar2img=torch.eye(4).expand(len(boxes), 1, 4, 4),
        image_sizes=torch.ones(len(boxes), 1, 2),
    )


def knowledge(heatmap):
    return BEVKnowledge(bev_heatmap=heatmap, bev_range=(-3.0, -2.0, 3.0, 2.0), fpn_strides=[8])


def distance(student, teacher, kind):
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = (1 / (1 + math.exp(-z)) for z in (t, s))
        if kind == "kl":
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        else:
            total += abs(p - q) ** (1 if kind == "l1" else 2)
    return total


def build(**settings):
    return build_method("Heatmap", bev_shapes(8, GRID), MAPS=["bev"], **settings)


@pytest.mark.parametrize("kind", ["l1", "l2", "kl"])
@pytest.mark.parametrize("mask", ["gaussian", "none"])
def test_it_is_the_mean_distance_about_the_objects_or_everywhere(kind, mask):
    student, teacher = normal(B, K, *GRID, seed=0), normal(B, K, *GRID, seed=1)
    objects = targets(BOXES[0], torch.zeros(0, 9))
    loss = build(DISTANCE=kind, MASK=mask)(knowledge(student), knowledge(teacher), objects)
    cells = {(b, y, x) for b in range(B) for y in range(GRID[0]) for x in range(GRID[1])}
    counted = AT if mask == "gaussian" else cells
    total = sum(distance(student[b, :, y, x], teacher[b, :, y, x], kind) for b, y, x in counted)
    assert loss.item() == pytest.approx(total / len(counted), rel=1e-5)


def test_a_dense_map_leaves_the_padding_out():
    student, teacher = normal(B, 5, K, seed=0), normal(B, 5, K, seed=1)
    method = build_method("Heatmap", fpn_shapes(8), MASK="none")
    assert method.maps == ["dense"] and method.requires == {"logits"}
    loss = method(dense_knowledge(student, width=8 * 3), dense_knowledge(teacher), None)
    total = sum(distance(student[b, q], teacher[b, q], "l1") for b in range(B) for q in range(3))
    assert loss.item() == pytest.approx(total / (3 * B), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_batch_without_objects_and_sixteen_bits_are_finite(dtype):
    student = (30 * normal(B, K, *GRID, seed=0)).to(dtype).requires_grad_()
    known = knowledge(student), knowledge((30 * normal(B, K, *GRID, seed=1)).to(dtype))
    nothing = targets(torch.zeros(0, 9), torch.zeros(0, 9))
    loss = build()(*known, nothing)
    assert loss.item() == 0 and not gradient(loss, student).any()
    loss = build(MASK="none", DISTANCE="kl")(*known, nothing)
    assert loss.dtype == torch.float32 and gradient(loss, student).any()


@pytest.mark.parametrize(
    ("options", "maps", "message"),
    [
        ((), [], r"MAPS: bev, but the student has no such head; set MODEL\.BEVFORMER\.AUX\.BEV_HEATMAP_WEI"),
        (BEV_HEAD, [], r"MAPS: image, but the student has no such head; set MODEL\.BEVFORMER\.AUX\.IMAGE_HE"),
        (IMAGE_HEAD, ["bev"], r"MAPS: bev, but the student"),
    ],
)
def test_heads_that_are_not_there_are_named_when_the_model_is_built(options, maps, message):
    with pytest.raises(ValueError, match=rf"DISTILL\.HEATMAP\.{message}"):
        build_pair("BEVFormer", "Heatmap", options=options, MAPS=maps)


def test_a_detector_of_several_levels_has_no_heat_map():
    assert detector_cfg("PGD", 8).MODEL.FPN.NUM_OUTS == 2
    with pytest.raises(ValueError, match=r"DISTILL\.HEATMAP\.MAPS: dense, but the student, a PGD"):
        build_pair("PGD", "Heatmap")


def test_unknown_maps_and_grids_that_differ_are_named():
    with pytest.raises(ValueError, match=r"DISTILL\.HEATMAP\.MAPS: \['depth'\]"):
        build_method("Heatmap", bev_shapes(8, GRID), MAPS=["depth"])
    with pytest.raises(ValueError, match=r"DISTILL\.HEATMAP\.MAPS: \['bev', 'dense'\]"):
        build_method("Heatmap", bev_shapes(8, GRID), MAPS=["bev", "dense"])
    other = knowledge(normal(B, K, 6, 6, seed=1))
    with pytest.raises(ValueError, match=r"bev: the student's map is \(2, 3, 4, 6\)"):
        build()(knowledge(normal(B, K, *GRID, seed=0)), other, targets(BOXES[0], BOXES[0]))
