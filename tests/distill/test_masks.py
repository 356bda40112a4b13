"""Object masks on images and on the BEV grid, for every kind of source."""

import math

import pytest
import torch

from bevkd2.d2 import ShapeSpec
from bevkd2.distill import draw_content, draw_masks, resolve_sources
from bevkd2.modeling import BEVKnowledge, BEVTargets
from bevkd2.modeling.detector import FeatureShapes
from bevkd2.structures import Boxes3D, project_points
from tests.distill.methods.harness import build_detector, make_batch
from tests.distill.test_sources import raise_unless, shapes


def grid_targets(*boxes):
    tensor = torch.tensor(
        [[x, y, 0.0, length, width, 1.0, yaw, 0.0, 0.0] for x, y, length, width, yaw in boxes]
    )
    return BEVTargets(
        boxes=[Boxes3D(tensor.reshape(-1, 9))],
        labels=[],
        codes=[],
        lidar2img=torch.eye(4)[None, None],
        image_sizes=torch.tensor([[[8.0, 8.0]]]),
    )


def draw_bev(kind, *boxes, normalize=False):
    (source,) = resolve_sources(["bev"], shapes(), shapes(), raise_unless)
    knowledge = BEVKnowledge(bev_range=(-4.0, -3.0, 4.0, 3.0))
    (mask,) = draw_masks([source], [(6, 8)], knowledge, grid_targets(*boxes), kind, normalize=normalize)
    return mask[0]


def test_a_turned_box_covers_the_cells_under_it():
    mask = draw_bev("foreground", (0.5, 0.5, 5.0, 1.0, math.pi / 2))
    expected = torch.zeros(6, 8)
    expected[1:6, 4] = 1.0
    assert torch.equal(mask, expected)
    assert torch.equal(draw_bev("background", (0.5, 0.5, 5.0, 1.0, math.pi / 2)), 1 - expected)


def test_normalised_masks_give_every_object_the_same_weight():
    mask = draw_bev("foreground", (-2.5, 0.5, 3.0, 1.0, 0.0), (2.5, 0.5, 1.0, 1.0, 0.0), normalize=True)
    assert mask[3, 0:3].sum().item() == pytest.approx(1.0)
    assert mask[3, 6].item() == pytest.approx(1.0)


def test_gaussian_is_one_at_the_centre_and_falls():
    mask = draw_bev("gaussian", (0.5, 0.5, 6.0, 6.0, 0.0))
    assert mask[3, 4] == 1.0 and 0 < mask[3, 5] < 1.0 and mask[0, 0] == 0.0


@pytest.mark.parametrize("detector", ["BEVFormer", "PGD", "SMOKE"])
def test_image_boxes_are_those_of_every_image(detector):
    model = build_detector(detector, 8, 0)
    batch = make_batch(detector, 1, 2)
    inputs = model.preprocess(batch)
    targets = model.targets(batch, inputs)
    boxes = targets.image_boxes()
    known = model.extract(inputs, frozenset({"fpn"}))
    assert len(boxes) == len(known.image_sizes) and sum(map(len, boxes)) > 0
    for image, size in zip(boxes, known.image_sizes, strict=True):
        assert (image >= 0).all() and (image[:, 2:] <= size.flip(0)).all()
        assert (image[:, :2] < image[:, 2:]).all()
    sources = resolve_sources(["fpn"], model.feature_shapes(), model.feature_shapes(), raise_unless)
    level_shapes = [tuple(level.shape[-2:]) for level in known.fpn]
    foreground = draw_masks(sources, level_shapes, known, targets, "foreground")
    background = draw_masks(sources, level_shapes, known, targets, "background")
    content = draw_content(sources, level_shapes, known)
    for level, front, back, inside in zip(known.fpn, foreground, background, content, strict=True):
        assert front.shape == (len(level), *level.shape[-2:])
        assert torch.equal(front + back, inside)


def test_a_projected_box_spans_its_corners():
    batch = make_batch("BEVFormer", 1)
    model = build_detector("BEVFormer", 8, 0)
    targets = model.targets(batch, model.preprocess(batch))
    boxes = targets.image_boxes()
    for camera, matrix in enumerate(targets.lidar2img[0]):
        corners, depth = project_points(targets.boxes[0].corners(), matrix.expand(4, 4, 4))
        spans = []
        for pixels, ahead in zip(corners, depth > 0.1, strict=True):
            if ahead.any():
                x, y = pixels[ahead].unbind(1)
                span = [x.min().clamp(0), y.min().clamp(0), x.max().clamp(max=64), y.max().clamp(max=32)]
                if span[0] < span[2] and span[1] < span[3]:
                    spans.append(torch.stack(span))
        assert len(spans) == len(boxes[camera])
        if spans:
            assert torch.allclose(torch.stack(spans), boxes[camera])


def test_targets_without_boxes_on_the_ground_are_named():
    model = build_detector("PGD", 8, 0)
    batch = make_batch("PGD", 1)
    targets = model.targets(batch, model.preprocess(batch))
    (source,) = resolve_sources(["bev"], shapes(), shapes(), raise_unless)
    with pytest.raises(ValueError, match=r"targets with grid_boxes\(\), which MonoTargets lacks"):
        draw_masks([source], [(6, 8)], BEVKnowledge(bev_range=(0, 0, 1, 1)), targets, "foreground")


def image_masks(boxes, kind="foreground", **options):
    """Masks of two levels, of strides 8 and 16, of one image of 48 x 64 pixels."""
    sources = resolve_sources(["fpn"], *[image_shapes()] * 2, raise_unless)
    knowledge = BEVKnowledge(image_sizes=torch.tensor([[48.0, 64.0]]))
    targets = type("Targets", (), {"image_boxes": lambda self: [torch.tensor(boxes).reshape(-1, 4)]})()
    return [mask[0] for mask in draw_masks(sources, [(6, 8), (3, 4)], knowledge, targets, kind, **options)]


def image_shapes():
    return FeatureShapes(backbone={}, fpn=[ShapeSpec(channels=4, stride=stride) for stride in (8, 16)])


@pytest.mark.parametrize(
    ("rounding", "rows", "columns"),
    [("centers", (1, 3), (2, 4)), ("outward", (0, 4), (1, 6)), ("truncated", (0, 3), (1, 4))],
)
def test_boxes_are_rounded_to_cells(rounding, rows, columns):
    # In cells of 8 pixels: columns 1.625 to 4.375, rows 0.75 to 3.0
    fine, _ = image_masks([[13.0, 6.0, 35.0, 24.0]], rounding=rounding)
    expected = torch.zeros(6, 8)
    expected[rows[0] : rows[1], columns[0] : columns[1]] = 1.0
    assert torch.equal(fine, expected)


def test_a_truncated_box_thinner_than_a_cell_has_one_cell():
    fine, coarse = image_masks([[17.0, 9.0, 22.0, 40.0]], rounding="truncated")
    assert fine.nonzero().tolist() == [[1, 2]] and coarse.nonzero().tolist() == [[0, 1]]


def test_an_outward_box_counts_all_of_its_cells():
    fine, _ = image_masks([[13.0, 6.0, 35.0, 24.0]], rounding="outward", normalize=True)
    assert fine[0, 1].item() == pytest.approx(1 / 20) and fine.sum().item() == pytest.approx(1.0)


def test_an_object_may_be_on_the_level_of_its_size_alone():
    small, large = [0.0, 0.0, 16.0, 16.0], [-200.0, -200.0, 64.0, 48.0]
    fine, coarse = image_masks([small], one_level=True)
    assert fine.sum() == 4 and coarse.sum() == 0
    fine, coarse = image_masks([large], one_level=True)
    assert fine.sum() == 0 and coarse.sum() == 12
    fine, coarse = image_masks([small, large], "background", one_level=True)
    assert fine.sum() == 44 and coarse.sum() == 0
