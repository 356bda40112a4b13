"""BEV feature imitation against loops over cells: every mask, DistillBEV's regions, errors."""

import math

import pytest
import torch

from bevkd2.config import get_cfg
from bevkd2.distill.methods import BEVFeature
from bevkd2.modeling.bev.box_coder import encode_boxes
from bevkd2.modeling.bev.inputs import BEVTargets
from bevkd2.structures import Boxes3D
from tests.distill.methods.harness import build_pair
from tests.distill.methods.inputs import (
    bev_knowledge,
    bev_shapes,
    build_method,
    fpn_shapes,
    gradient,
    normal,
)

GRID, B, C = (6, 8), 2, 3
CELLS = [(y, x) for y in range(6) for x in range(8)]
NO_BOX = torch.zeros(0, 5)


def boxes3d(rows):
    """Boxes of (x, y, length, width, yaw)."""
    zeros = torch.zeros(len(rows))
    x, y, length, width, yaw = rows.unbind(1)
    return Boxes3D(torch.stack([x, y, zeros, length, width, zeros + 1, yaw, zeros, zeros], dim=1))


def targets(*samples):
    return BEVTargets(
        boxes=[boxes3d(rows) for rows in samples],
        labels=[],
        codes=[],
        lidar2img=torch.eye(4).expand(len(samples), 1, 4, 4),
        image_sizes=torch.ones(len(samples), 1, 2),
    )


def squared(student, teacher, b, cell):
    y, x = cell
    return ((student[b, y * 8 + x] - teacher[b, y * 8 + x]) ** 2).sum().item()


def inside(box, cell):
    """A cell of 1 m whose centre lies in a box along the axes."""
    y, x = cell[0] - 3 + 0.5, cell[1] - 4 + 0.5
    return abs(x - box[0]) < box[2] / 2 and abs(y - box[1]) < box[3] / 2


FIRST = torch.tensor([[0.5, 0.5, 3.0, 1.0, 0.0], [-3.0, -2.0, 2.0, 2.0, 0.0]])
FEATURES = normal(B, 48, C, seed=0), normal(B, 48, C, seed=1)


def run(mask, student=FEATURES[0], teacher=FEATURES[1], objects=None, fields=None, **settings):
    method = build_method("BEVFeature", bev_shapes(C, GRID), MASK=mask, **settings)
    method.to(torch.promote_types(student.dtype, torch.float32))
    known = bev_knowledge(student, GRID), bev_knowledge(teacher, GRID, **(fields or {}))
    return method(*known, objects or targets(FIRST, NO_BOX))


def test_foreground_is_the_mean_over_the_cells_in_boxes_and_an_empty_sample_has_no_loss():
    covered = [cell for cell in CELLS if any(inside(box, cell) for box in FIRST.tolist())]
    assert len(covered) == 7
    expected = sum(squared(*FEATURES, 0, cell) for cell in covered) / 7 / B
    assert run("foreground").item() == pytest.approx(expected, rel=1e-6)


def test_gaussian_is_weighted_by_the_distance_from_the_centres():
    box = torch.tensor([[0.5, 0.5, 7.0, 5.0, 0.0]])
    loss = run("gaussian", objects=targets(box, NO_BOX))
    above = below = 0.0
    for cell in CELLS:
        u, v = (cell[1] - 4) / (7 / 6), (cell[0] - 3) / (5 / 6)  # in deviations, of a sixth of the side
        weight = math.exp(-(u * u + v * v) / 2) if u * u + v * v < 9 else 0.0
        above += weight * squared(*FEATURES, 0, cell)
        below += weight
    assert loss.item() == pytest.approx(above / below / B, rel=1e-5)
    wide = run("gaussian", objects=targets(box, NO_BOX), GAUSSIAN_ALPHA=2.0)
    assert not torch.isclose(wide, loss)


def test_none_is_the_mean_over_all_cells():
    expected = sum(squared(*FEATURES, b, cell) for b in range(B) for cell in CELLS) / 48 / B
    assert run("none").item() == pytest.approx(expected, rel=1e-6)


def predictions(rows, scores):
    """The last decoder layer of a teacher: the first layer's boxes are elsewhere."""
    codes = encode_boxes(boxes3d(rows))[None].expand(B, -1, -1)
    logits = torch.tensor(scores).logit()[None, :, None].expand(B, -1, 1)
    return {"box_codes": torch.stack([torch.zeros_like(codes), codes]), "logits": logits}


@pytest.mark.parametrize("weight", [0.06, 0.0])
def test_adaptive_weighs_objects_background_and_false_positives(weight):
    annotated = torch.tensor([[0.5, 0.5, 3.0, 1.0, 0.0]])
    # one on the annotated object (and wider), one false positive, one below the threshold
    predicted = torch.tensor(
        [[0.5, 0.5, 3.0, 3.0, 0.0], [-2.5, -1.5, 1.0, 3.0, 0.0], [2.5, -1.5, 1.0, 1.0, 0.0]]
    )
    fields = predictions(predicted, [0.9, 0.11, 0.09])
    settings = {"ADAPTIVE.FALSE_POSITIVE_WEIGHT": weight}
    method = build_adaptive(**settings)
    known = bev_knowledge(FEATURES[0], GRID), bev_knowledge(FEATURES[1], GRID, **(fields if weight else {}))
    losses = method(*known, targets(annotated, NO_BOX))
    expected = 0.0
    for b, objects in enumerate((annotated.tolist(), [])):
        front = [cell for cell in CELLS if any(inside(box, cell) for box in objects)]
        ghosts = [c for c in CELLS if any(inside(box, c) for box in predicted[:2].tolist())] if weight else []
        ghosts = [cell for cell in ghosts if cell not in front]
        rest = [cell for cell in CELLS if cell not in front and cell not in ghosts]
        response = [FEATURES[1][b, y * 8 + x].abs().mean().item() / 0.5 for y, x in CELLS]
        total = sum(map(math.exp, response))
        for cell, at in zip(CELLS, response, strict=True):
            attention = 48 * math.exp(at) / total
            if cell in front:
                scale = 3e-3 / math.sqrt(3)
            else:
                scale = weight / len(ghosts) if cell in ghosts else 4e-2 / len(rest)
            expected += attention * scale * squared(*FEATURES, b, cell) / B
    assert losses["bev_feature"].item() == pytest.approx(expected, rel=1e-5)
    means = [features.mean(-1) for features in FEATURES]
    distance = (means[0] - means[1]).abs().sum().item() / B
    assert losses["bev_feature_attention"].item() == pytest.approx(1e-3 * distance, rel=1e-6)


def build_adaptive(**settings):
    node = get_cfg().DISTILL.BEV_FEATURE
    node.MASK = "adaptive"
    node.merge_from_list([part for item in settings.items() for part in item])
    shapes = bev_shapes(C, GRID)
    return BEVFeature(node, shapes, shapes).double()


def test_false_positives_alone_run_the_teachers_decoder():
    assert build_adaptive().requires == {"bev_embed", "bev_range", "logits", "box_codes"}
    without = build_adaptive(**{"ADAPTIVE.FALSE_POSITIVE_WEIGHT": 0.0})
    assert without.requires == {"bev_embed", "bev_range"}
    assert build_method("BEVFeature", bev_shapes(C, GRID)).requires == without.requires


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", ["gaussian", "foreground", "adaptive", "none"])
def test_samples_without_objects_and_sixteen_bits_are_finite(mask, dtype):
    ours = (30 * FEATURES[0]).to(dtype).requires_grad_()
    fields = predictions(torch.tensor([[0.5, 0.5, 3.0, 3.0, 0.0]]), [0.01])
    losses = run(mask, ours, (30 * FEATURES[1]).to(dtype), targets(NO_BOX, NO_BOX), fields)
    losses = losses if isinstance(losses, dict) else {"bev_feature": losses}
    found = gradient(sum(losses.values()), ours)
    assert found.any() == (mask in ("adaptive", "none"))


def test_bad_use_names_the_key():
    with pytest.raises(ValueError, match=r"DISTILL\.BEV_FEATURE\.SOURCES: fpn\.0 lies in images"):
        build_method("BEVFeature", fpn_shapes(C), SOURCES=["fpn"])
    with pytest.raises(ValueError, match=r"DISTILL\.BEV_FEATURE\.MASK: 'box'"):
        build_method("BEVFeature", bev_shapes(C, GRID), MASK="box")
    with pytest.raises(ValueError, match=r"the BEV grid has \(6, 8\)[\s\S]*\(8, 8\)"):
        build_method("BEVFeature", bev_shapes(C, GRID), bev_shapes(C, (8, 8)))
    with pytest.raises(ValueError, match=r"DISTILL\.BEV_FEATURE\.SOURCES"):
        build_pair("SMOKE", "BEVFeature")
