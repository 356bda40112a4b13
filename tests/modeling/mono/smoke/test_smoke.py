"""SMOKE from samples to losses and detections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import bevkd2.modeling  # noqa: F401  (registers)
from bevkd2.config import CfgNode, get_cfg
from bevkd2.d2 import build_model
from bevkd2.modeling import SMOKE
from bevkd2.modeling.mono.smoke import smoke as smoke_module
from bevkd2.structures import CameraBoxes3D, project_points, projected_boxes2d
from tests.tolerance import assert_same_sum

HEIGHT, WIDTH = 64, 96
NEAR = [-1.0, 0.4, 10.0, 3.9, 1.6, 1.5, 0.3]
FAR = [3.0, -0.5, 20.0, 0.8, 0.6, 1.7, 2.0]
LOSSES = {"loss_heatmap", "loss_orientation", "loss_size", "loss_location"}


@pytest.fixture
def cfg() -> CfgNode:
    """A thin residual backbone in place of DLA."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.FORMAT = "cpu", "SMOKE", "kitti"
    cfg.MODEL.BACKBONE.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "GN", 0
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS = 10, 8, 8
    resnets.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.SMOKE.FEATURE_CHANNELS = 16
    return cfg


@pytest.fixture
def model(cfg: CfgNode) -> SMOKE:
    torch.manual_seed(0)
    return build_model(cfg)


def sample(seed: int = 0, boxes: list[list[float]] | None = None, **more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    cam2img = torch.eye(4)
    cam2img[0, 0] = cam2img[1, 1] = 70.0 + seed
    cam2img[:2, 2] = torch.tensor([WIDTH / 2, HEIGHT / 2])
    cam2img[:3, 3] = torch.tensor([4.4, 0.2, 0.003])
    objects = CameraBoxes3D(torch.tensor([NEAR, FAR] if boxes is None else boxes).reshape(-1, 7))
    return {
        "image": torch.randint(0, 256, (3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8),
        "sample_id": f"{seed:06}",
        "cam2img": cam2img,
        "boxes": objects,
        "labels": torch.tensor([2, 0])[: len(objects)],
        "boxes2d": projected_boxes2d(objects, cam2img, (HEIGHT, WIDTH)),
        **more,
    }


def test_a_training_step_reaches_every_parameter_and_lowers_the_loss(model: SMOKE):
    model.train()
    samples = [sample(0), sample(1)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    totals = []
    for step in range(6):
        losses = model(samples)
        assert set(losses) == LOSSES
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        if step == 0:
            assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.8 * totals[0]


def test_objects_are_selected_once_per_step(model: SMOKE, monkeypatch: pytest.MonkeyPatch):
    calls, select = [], smoke_module.objects_of
    monkeypatch.setattr(smoke_module, "objects_of", lambda *args: calls.append(args) or select(*args))
    model.train()([sample(0), sample(1)])
    assert len(calls) == 1


def test_knowledge_is_of_the_locations(model: SMOKE):
    inputs = model.eval().preprocess([sample(0), sample(1)])
    knowledge = model.extract(inputs, frozenset({"backbone", "fpn"}))
    cells = HEIGHT // 4 * (WIDTH // 4)
    assert knowledge.logits.shape == (2, cells, 3)
    assert knowledge.depth.shape == knowledge.direct_depth.shape == (2, cells)
    assert knowledge.probabilistic_depth is None
    assert knowledge.level_shapes == [(HEIGHT // 4, WIDTH // 4)]
    y, x = 5, 7
    index = y * (WIDTH // 4) + x
    assert knowledge.locations[index].tolist() == [4 * x + 2, 4 * y + 2]
    assert torch.equal(knowledge.logits[1, index], knowledge.outputs.logits[1, :, y, x])
    expected = 28.01 + 16.32 * knowledge.outputs.codes[1, 0, y, x]
    torch.testing.assert_close(knowledge.depth[1, index], expected)
    shapes = model.feature_shapes()
    assert [level.shape[1] for level in knowledge.fpn] == [level.channels for level in shapes.fpn]
    assert knowledge.fpn_strides == [level.stride for level in shapes.fpn] == [4]
    assert set(knowledge.backbone) == set(shapes.backbone)
    with pytest.raises(ValueError, match="no field"):
        model.extract(inputs, frozenset({"attention"}))


def test_assigned_cells_are_those_of_the_centres(model: SMOKE):
    samples = [sample(0), sample(1, boxes=[])]
    inputs = model.preprocess(samples)
    targets = model.targets(samples, inputs)
    assert targets.assigned.shape == (2, HEIGHT // 4 * (WIDTH // 4))
    assert (targets.assigned[1] == -1).all()
    locations = model.eval().extract(inputs).locations
    for index, center in enumerate(targets.centers2d[0]):
        (cell,) = (targets.assigned[0] == index).nonzero()[0]
        assert (locations[cell] - center).abs().max() <= 2
    depths = targets.depth_of_locations()
    torch.testing.assert_close(depths[targets.assigned >= 0].sort().values, targets.depths[0].sort().values)


def test_batch_of_two_equals_two_batches_of_one(model: SMOKE):
    model.eval()
    model.score_threshold = 0.0
    both = model([sample(0), sample(1)])
    longest_sum = max(weight[0].numel() for weight in model.parameters())
    for i in range(2):
        (alone,) = model([sample(i)])
        assert torch.equal(both[i]["labels"], alone["labels"])
        assert_same_sum(both[i]["scores"], alone["scores"], longest_sum)
        assert_same_sum(both[i]["boxes"].tensor, alone["boxes"].tensor, longest_sum)


def test_detections_follow_threshold_and_limit(cfg: CfgNode):
    cfg.MODEL.SMOKE.SCORE_THRESHOLD, cfg.MODEL.SMOKE.MAX_DETECTIONS = 0.0, 9
    model = build_model(cfg).eval()
    (result,) = model([sample(0)])
    assert set(result) == {"boxes", "scores", "labels"}
    assert len(result["boxes"]) == len(result["scores"]) == 9
    assert result["boxes"].tensor.shape == (9, 7)
    uv, _ = project_points(result["boxes"].center, sample(0)["cam2img"])
    assert ((uv > -8) & (uv < torch.tensor([WIDTH + 8, HEIGHT + 8]))).all()
    model.score_threshold = 1.0
    assert len(model([sample(0)])[0]["boxes"]) == 0


def test_bfloat16_changes_little(model: SMOKE):
    samples = [sample(0), sample(1)]
    model.train()
    exact = model(samples)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(samples)
    for name in LOSSES:
        assert rough[name].dtype == torch.float32
        torch.testing.assert_close(rough[name], exact[name], rtol=0.05, atol=0.01)


def test_no_objects_at_all(model: SMOKE):
    losses = model.train()([sample(0, boxes=[]), sample(1, boxes=[])])
    assert losses["loss_heatmap"] > 0
    assert all(losses[name] == 0 for name in LOSSES - {"loss_heatmap"})
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_affine_augmented_images_give_boxes_no_gradient(model: SMOKE):
    losses = model.train()([sample(0, affine_augmented=True)])
    assert all(losses[name] == 0 for name in LOSSES - {"loss_heatmap"})
    sum(losses.values()).backward()
    assert not any(p.grad.any() for p in model.head.box_branch.parameters())
    assert any(p.grad.any() for p in model.head.class_branch.parameters())
    mixed = model([sample(0, affine_augmented=True), sample(1)])
    alone = model([sample(1)])
    torch.testing.assert_close(mixed["loss_location"], alone["loss_location"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "channels", "reduced"), [("dla34", 64, 0), ("dla60", 128, 0), ("dla60", 64, 64)]
)
def test_dla_backbones(cfg: CfgNode, name: str, channels: int, reduced: int):
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.OUT_INDICES = name, [2, 3, 4, 5]
    cfg.MODEL.DLA_UP.OUT_CHANNELS = reduced
    model = build_model(cfg).train()
    assert model.feature_shapes().fpn[0].channels == channels
    losses = model([sample(0)])
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda smoke: smoke.SIZE_PRIORS.pop(), r"Pedestrian, Cyclist, Car \(DATASETS.CLASSES\)"),
        (lambda smoke: smoke.__setattr__("DEPTH_PRIOR", [28.0]), "DEPTH_PRIOR is"),
        (lambda smoke: smoke.__setattr__("MIN_OVERLAP", 1.0), "MIN_OVERLAP is 1.0"),
        (lambda smoke: smoke.__setattr__("MAX_DETECTIONS", 0), "MAX_DETECTIONS is 0"),
    ],
)
def test_contradicting_keys_are_errors(cfg: CfgNode, change: Callable[[CfgNode], None], message: str):
    change(cfg.MODEL.SMOKE)
    with pytest.raises(ValueError, match=message):
        build_model(cfg)
