"""Boxes at all locations, held against those that inference returns."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bevkd2.d2 import build_model
from bevkd2.structures import CameraBoxes3D, projected_boxes2d
from tests.modeling.mono.pgd_model import make_image, small_cfg

WANTS = frozenset({"boxes", "boxes2d", "depth_uncertainty"})


def make(architecture: str, nuscenes: bool = False):
    cfg = small_cfg(architecture, nuscenes=nuscenes)
    if architecture == "SMOKE":
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.SMOKE.FEATURE_CHANNELS = cfg.MODEL.DLA_UP.OUT_CHANNELS = 16
        cfg.MODEL.SMOKE.SCORE_THRESHOLD = 0.0
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    if architecture == "SMOKE":  # one class is the most likely everywhere
        with torch.no_grad():
            model.head.class_branch.out.bias.copy_(torch.tensor([2.0, -2.0, -2.0]))
    if architecture != "SMOKE":
        model.decoding = dataclasses.replace(model.decoding, score_threshold=0.0)
    samples = [make_image(seed, nuscenes=nuscenes) for seed in (0, 1)]
    samples[1]["image"] = samples[1]["image"][:, :50, :80]
    return model, model.preprocess(samples)


@pytest.mark.parametrize(
    ("architecture", "nuscenes"), [("PGD", False), ("PGD", True), ("FCOS3D", True), ("SMOKE", False)]
)
def test_detections_are_among_the_boxes_of_all_locations(architecture: str, nuscenes: bool) -> None:
    model, inputs = make(architecture, nuscenes)
    with torch.no_grad():
        knowledge = model.extract(inputs, WANTS)
        detections = model.inference(knowledge, inputs)
    batch, count = knowledge.logits.shape[:2]
    assert knowledge.boxes.shape == (batch, count, 7) and knowledge.boxes2d.shape == (batch, count, 4)
    for row, found in enumerate(detections):
        assert len(found["scores"]) > 3
        matched = 0
        for i, (box, label) in enumerate(zip(found["boxes"].tensor[:, :7], found["labels"], strict=True)):
            if architecture == "SMOKE" and label != 0:
                continue  # a peak of a class that is not its cell's most likely one
            gaps = (knowledge.boxes[row] - box).abs().amax(dim=1)
            at = int(gaps.argmin())
            matched += 1
            assert gaps[at] < 1e-4
            if "boxes2d" in found:
                assert torch.allclose(knowledge.boxes2d[row, at], found["boxes2d"][i], atol=1e-4)
        assert matched > 3


@pytest.mark.parametrize("architecture", ["FCOS3D", "SMOKE"])
def test_heads_without_2d_boxes_have_those_around_the_projected_ones(architecture: str) -> None:
    model, inputs = make(architecture, architecture == "FCOS3D")
    knowledge = model.extract(inputs, WANTS)
    assert knowledge.boxes.requires_grad and not knowledge.boxes2d.requires_grad
    for row, size in enumerate([(64, 96), (50, 80)]):
        boxes = CameraBoxes3D(knowledge.boxes[row].detach())
        expected = projected_boxes2d(boxes, inputs.cam2img[row], size)
        assert torch.allclose(knowledge.boxes2d[row], expected, atol=1e-3)


def test_uncertainty_is_the_heads_where_it_has_one() -> None:
    model, inputs = make("PGD")
    knowledge = model.extract(inputs, WANTS)
    expected = torch.cat([level.flatten(1) for level in knowledge.outputs.uncertainty], dim=1)
    assert torch.equal(knowledge.depth_uncertainty, expected)
    model, inputs = make("FCOS3D", True)
    assert model.extract(inputs, WANTS).depth_uncertainty is None


@pytest.mark.parametrize("architecture", ["PGD", "SMOKE"])
def test_they_are_filled_alone_where_they_are_all_that_is_wanted(architecture: str) -> None:
    model, inputs = make(architecture)
    knowledge, full = model.extract_only(inputs, frozenset({"boxes"})), model.extract(inputs, WANTS)
    assert knowledge.boxes2d is None and torch.equal(knowledge.boxes, full.boxes)
    assert model.extract(inputs).boxes is None
