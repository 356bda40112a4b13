"""FCOS3D and PGD: knowledge, training, detections, and independence of the images of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bevkd2.d2 import build_model
from bevkd2.modeling import FCOS3D, PGD
from bevkd2.modeling.mono.fcos3d.config import pgd_arguments
from bevkd2.structures import CameraBoxes3D, project_points
from tests.modeling.mono.pgd_model import HEIGHT, WIDTH, make_image, small_cfg

KINDS = [("PGD", False), ("PGD", True), ("FCOS3D", False), ("FCOS3D", True)]


def make_model(architecture: str = "PGD", width: int = 16, nuscenes: bool = False) -> FCOS3D:
    torch.manual_seed(0)
    model = build_model(small_cfg(architecture, width, nuscenes))
    assert isinstance(model, FCOS3D)
    return model


def knowledge_of(model: FCOS3D, samples: list[dict[str, Any]]):
    with torch.no_grad():
        return model.extract(model.preprocess(samples))


@pytest.mark.parametrize(("architecture", "nuscenes"), KINDS)
def test_a_training_step_reaches_every_parameter(architecture: str, nuscenes: bool):
    model = make_model(architecture, nuscenes=nuscenes).train()
    samples = [make_image(seed, nuscenes=nuscenes) for seed in (0, 1)]
    inputs = model.preprocess(samples)
    targets = model.targets(samples, inputs)
    assert targets.assigned is not None
    assert targets.assigned.shape == (2, 12 * 8 + 6 * 4)
    assert int((targets.assigned >= 0).sum()) > 0
    losses = model(samples)
    assert {"loss_cls", "loss_depth", "loss_direction", "loss_centerness"} <= set(losses)
    assert ("loss_consistency" in losses) == (architecture == "PGD")
    assert ("loss_attribute" in losses) == nuscenes
    assert all(loss.isfinite() and loss.ndim == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("architecture", ["PGD", "FCOS3D"])
def test_training_lowers_the_losses(architecture: str):
    model = make_model(architecture).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    samples = [make_image(0), make_image(1)]
    totals = []
    for _ in range(12):
        total = sum(model(samples).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.8 * totals[0]


@pytest.mark.parametrize("nuscenes", [False, True])
def test_images_without_objects_still_reach_every_parameter(nuscenes: bool):
    model = make_model(nuscenes=nuscenes).train()
    losses = model([make_image(seed, objects=0, nuscenes=nuscenes) for seed in (0, 1)])
    assert losses["loss_cls"].item() > 0
    assert all(loss.item() == 0 for name, loss in losses.items() if name != "loss_cls")
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(("architecture", "nuscenes"), KINDS)
def test_a_batch_of_two_is_two_batches_of_one(architecture: str, nuscenes: bool):
    model = make_model(architecture, nuscenes=nuscenes).eval()
    model.decoding = type(model.decoding)(**{**vars(model.decoding), "score_threshold": 0.0})
    samples = [make_image(seed, nuscenes=nuscenes) for seed in (0, 1)]
    samples[1]["cam2img"] = samples[1]["cam2img"] * torch.tensor([[1.1], [1.1], [1.0], [1.0]])
    together = model(samples)
    apart = [model([sample])[0] for sample in samples]
    for one, other in zip(together, apart, strict=True):
        assert set(one) == set(other)
        assert len(one["scores"]) > 0
        torch.testing.assert_close(one["boxes"].tensor, other["boxes"].tensor, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one["scores"], other["scores"], rtol=1e-4, atol=1e-6)
        assert torch.equal(one["labels"], other["labels"])
    inputs = model.preprocess(samples)
    assigned = model.targets(samples, inputs).assigned
    single = [model.targets([sample], model.preprocess([sample])).assigned for sample in samples]
    assert torch.equal(assigned, torch.cat(single))


def test_knowledge_has_the_shapes_that_distillation_reads():
    model = make_model().eval()
    with torch.no_grad():
        inputs = model.preprocess([make_image(0), make_image(1)])
        knowledge = model.extract(inputs, wants=frozenset({"fpn", "backbone"}))
    shapes = model.feature_shapes()
    assert knowledge.level_shapes == [(8, 12), (4, 6)]
    assert knowledge.logits.shape == (2, 120, 3)
    assert knowledge.locations.shape == (120, 2)
    assert knowledge.locations[0].tolist() == [4, 4]
    assert knowledge.locations[96 + 1].tolist() == [24, 8]
    assert [level.shape[1] for level in knowledge.fpn] == [shape.channels for shape in shapes.fpn]
    assert {name: f.shape[1] for name, f in knowledge.backbone.items()} == {
        name: shape.channels for name, shape in shapes.backbone.items()
    }
    weight = model.head.fuse_lambda.sigmoid().item()
    fused = weight * knowledge.direct_depth + (1 - weight) * knowledge.probabilistic_depth
    torch.testing.assert_close(knowledge.depth, fused)


def test_fcos3d_has_one_depth():
    knowledge = knowledge_of(make_model("FCOS3D").eval(), [make_image(0)])
    assert knowledge.probabilistic_depth is None
    assert torch.equal(knowledge.depth, knowledge.direct_depth)


def test_detections_project_to_their_locations():
    """Decoding inverts the whole calibration: centres come back to location minus offset, at the depth."""
    model, samples = make_model().eval(), [make_image(3)]
    model.decoding = type(model.decoding)(
        **{**vars(model.decoding), "score_threshold": 0.0, "nms_threshold": 1.0, "max_detections": 1000}
    )
    knowledge = knowledge_of(model, samples)
    found = model.inference(knowledge, model.preprocess(samples))[0]
    assert isinstance(found["boxes"], CameraBoxes3D)
    uv, depth = project_points(found["boxes"].center, samples[0]["cam2img"])
    strides = torch.tensor([8.0] * 96 + [16.0] * 24)[:, None]
    offsets = torch.cat([level[0, :2].flatten(1).T for level in knowledge.outputs.boxes])
    expected = knowledge.locations - offsets * strides
    distance, nearest = torch.cdist(uv, expected, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    assert float(distance.max()) < 1e-2
    torch.testing.assert_close(depth, knowledge.depth[0, nearest], rtol=1e-4, atol=1e-4)
    border = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    assert bool(((found["boxes2d"] >= 0) & (found["boxes2d"] <= border)).all())


def test_half_the_channels_are_a_config():
    full, half = make_model(width=16), make_model(width=8)
    count = {model: sum(p.numel() for p in model.head.parameters()) for model in (full, half)}
    assert count[half] < 0.35 * count[full]
    assert half.feature_shapes().fpn[0].channels == 8
    half.eval()([make_image(0)])


def test_branches_have_widths_of_their_own():
    cfg = small_cfg()
    cfg.merge_from_list(["MODEL.FCOS3D.BRANCH_CHANNELS", "[['uncertainty', 32, 24], ['centerness']]"])
    head = pgd_arguments(cfg)["head"]
    assert [conv.conv.out_channels for conv in head.extra_branches["uncertainty"].convs] == [32, 24]
    assert head.centerness_branch.out.in_channels == 16


def test_pgd_is_a_registered_fcos3d():
    assert isinstance(make_model("PGD"), PGD)
    assert not isinstance(make_model("FCOS3D"), PGD)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.FCOS3D.REGRESS_BOUNDS", [64.0, 128.0], "expected 1 rising"),
        ("MODEL.FCOS3D.LOSS.CODE_WEIGHTS", [1.0] * 9, "expected 7 with VELOCITY False"),
        ("MODEL.FCOS3D.SIZE_PRIORS", [[1.0, 1.0, 1.0]], "SIZE_PRIORS has 1 rows"),
        ("MODEL.FCOS3D.DEPTH_PRIORS", [[1.0, 1.0], [1.0, 1.0]], "DEPTH_PRIORS has 2 rows"),
        ("MODEL.FCOS3D.STACKED_CONVS", 0, "STACKED_CONVS is 0"),
        (
            "MODEL.FCOS3D.BRANCH_CHANNELS",
            [["centre", 8]],
            r"has \['centre', 8\], expected a list of the name",
        ),
        ("MODEL.FCOS3D.BRANCH_CHANNELS", [["size", 0]], r"has \['size', 0\].*channels above 0"),
        ("MODEL.FCOS3D.ATTRIBUTES", 8, "ATTRIBUTES is 8, expected 9"),
        ("MODEL.FCOS3D.TEST.MAX_DETECTIONS", 0, r"TEST\.MAX_DETECTIONS 0"),
        ("MODEL.PGD.DEPTH_BINS", 1, "DEPTH_BINS is 1"),
        ("MODEL.PGD.LOSS.CONSISTENCY_DEPTH", "both", "both"),
        ("MODEL.PIXEL_FORMAT", "BRG", "PIXEL_FORMAT is 'BRG'"),
        ("MODEL.PIXEL_STD", [0.0, 1.0, 1.0], "deviations above 0"),
        ("DATASETS.FORMAT", "nuscenes", "DATASETS.FORMAT is 'nuscenes'"),
    ],
)
def test_wrong_keys_are_named(key: str, value: Any, message: str):
    cfg = small_cfg()
    node = cfg
    *path, leaf = key.split(".")
    for name in path:
        node = node[name]
    node[leaf] = value
    with pytest.raises(ValueError, match=message):
        build_model(cfg)


def test_random_windows_are_refused():
    cfg = small_cfg()
    cfg.INPUT.AFFINE.ENABLED = True
    with pytest.raises(ValueError, match=r"INPUT\.AFFINE\.PROB is 0\.3, expected 0: PGD learns depths"):
        build_model(cfg)
    cfg.INPUT.AFFINE.PROB = 0.0
    build_model(cfg)


OPTIONS = {
    "no branch": {"UNCERTAINTY": False, "KEYPOINTS": False, "BOXES2D": False},
    "2D box": {"UNCERTAINTY": False, "KEYPOINTS": False},
    "keypoints": {"UNCERTAINTY": False, "BOXES2D": False},
    "uncertainty": {"KEYPOINTS": False, "BOXES2D": False},
}


@pytest.mark.parametrize("objects", [0, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_choice_of_branches_reaches_every_parameter(name: str, objects: int):
    """DistributedDataParallel waits for all of them, on images without objects too."""
    cfg = small_cfg(nuscenes=name == "2D box")
    cfg.MODEL.PGD.update(OPTIONS[name])
    cfg.MODEL.PGD.LOSS.CONSISTENCY_WEIGHT = 0.0
    samples = [make_image(seed, objects=objects, nuscenes=name == "2D box") for seed in (0, 1)]
    model = build_model(cfg).train()
    losses = model(samples)
    assert ("loss_boxes2d" in losses) == (name == "2D box")
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_an_unknown_want_is_an_error():
    model = make_model()
    with pytest.raises(ValueError, match="no field"):
        model.extract(model.preprocess([make_image(0)]), wants=frozenset({"bev"}))


def test_autocast_keeps_the_maps_in_float32():
    model = make_model().eval()
    inputs = model.preprocess([make_image(0)])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model.extract(inputs).outputs
    maps: list[Tensor] = [*outputs.boxes, *outputs.logits, *outputs.depth_bins, *outputs.uncertainty]
    assert {level.dtype for level in maps} == {torch.float32}
