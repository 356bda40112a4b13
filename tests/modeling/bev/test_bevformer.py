"""BEVFormer as a whole: batches, history, streaming, gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bevkd2.config import CfgNode
from bevkd2.d2 import build_model
from bevkd2.modeling import BEVFormer, BEVKnowledge
from bevkd2.modeling.bev.geometry import BEVGeometry
from bevkd2.structures import Boxes3D
from tests.tolerance import as_float64, float64_twin, ulps

Make = Callable[..., dict[str, Any]]


def randomized(cfg: CfgNode, seed: int = 0) -> BEVFormer:
    """A model in eval mode whose attention depends on its input, unlike at initialisation."""
    torch.manual_seed(seed)
    model = build_model(cfg).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets" in name or "attention_weights" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def outputs(model: BEVFormer, samples: list[dict[str, Any]]) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        known = model.extract(model.preprocess(samples), BEVKnowledge.costly_fields())
    return (
        known.bev_embed,
        known.class_logits.transpose(0, 1),
        known.box_codes.transpose(0, 1),
        known.bev_mask,
        torch.stack(known.temporal_attention, 1),
        torch.stack(known.spatial_attention, 1),
    )


def columns(output: torch.Tensor) -> torch.Tensor:
    """Returns (n, 10) of class logits and of box codes, whose columns have their own units; else (n, 1)."""
    return output.double().reshape(-1, output.shape[-1] if output.shape[-1] == 10 else 1)


@pytest.mark.parametrize("histories", [(0, 0), (2, 0), (1, 2), (0, 1)])
def test_batch_of_two_equals_two_batches_of_one(
    tiny_cfg: CfgNode, make_sample: Make, histories: tuple[int, int]
):
    """In float64 up to the order of sums, in float32 up to its measured rounding."""
    model = randomized(tiny_cfg)
    samples = [
        make_sample(1, history=histories[0]),
        make_sample(2, history=histories[1], turn=0.7, scene="another"),
    ]
    together = outputs(model, samples)
    apart = [outputs(model, [sample]) for sample in samples]
    assert not torch.equal(together[3][0], together[3][1])  # the calibrations differ
    longest_sum = max(weight[0].numel() for weight in model.parameters())
    model, samples = model.double(), as_float64(samples)
    with float64_twin():
        exact_together = outputs(model, samples)
        exact_apart = [outputs(model, [sample]) for sample in samples]
    for row in range(len(samples)):
        exact = zip(exact_together, exact_apart[row], strict=True)
        for batched, single, (exact_batched, exact_single) in zip(together, apart[row], exact, strict=True):
            if batched.dtype == torch.bool:
                assert torch.equal(batched[row], single[0])
                assert torch.equal(exact_batched[row], single[0])
                assert torch.equal(exact_single[0], single[0])
                continue
            assert (batched.dtype, exact_batched.dtype) == (torch.float32, torch.float64)
            scale = columns(exact_single[0]).abs().amax(0)
            apart_exactly = (columns(exact_batched[row]) - columns(exact_single[0])).abs().amax(0)
            assert (apart_exactly <= ulps(1, longest_sum, torch.float64) * scale).all()
            # Batched and single are rounded in another order, each about as far from float64 as the other, so
            # that they are twice that apart at most; twice as much is allowed, as one of them is measured.
            # No more than 1e-5 all the same, or 8 units in the last place of more than 10 (m).
            rounding = (columns(single[0]) - columns(exact_single[0])).abs().amax(0)
            bound = 4 * (rounding + ulps(1, 1) * scale)
            bound = torch.minimum(bound, (ulps(1, 8) * scale).clamp(min=1e-5))
            difference = (columns(batched[row]) - columns(single[0])).abs().amax(0)
            assert (difference <= bound).all(), (difference, bound)


def test_history_is_used(tiny_cfg: CfgNode, make_sample: Make):
    model = randomized(tiny_cfg)
    sample = make_sample(1, history=1)
    with_past = outputs(model, [sample])[0]
    without = outputs(model, [{**sample, "history": []}])[0]
    assert (with_past - without).abs().max() > 1e-2
    crossing = [{**sample["history"][0], "scene_token": "elsewhere"}]
    torch.testing.assert_close(outputs(model, [{**sample, "history": crossing}])[0], without)


def test_stream_equals_queue_and_resets(tiny_cfg: CfgNode, make_sample: Make, make_frame: Make):
    model = randomized(tiny_cfg)
    sample = make_sample(1, history=2)
    frames = [*sample["history"], {**sample, "history": []}]
    streamed = [model([frame])[0] for frame in frames]
    known = model.extract(model.preprocess([sample]))
    queued = model.inference(known, model.preprocess([sample]))[0]
    torch.testing.assert_close(streamed[-1]["scores"], queued["scores"])
    fresh = model([{**frames[-1], "scene_token": "new"}])[0]
    assert not torch.equal(fresh["scores"], queued["scores"])
    # A frame that is not later than the last one starts anew.
    again = model([frames[0]])[0]
    torch.testing.assert_close(again["scores"], streamed[0]["scores"])
    # One batch with the frames of a scene follows their order; other scenes do not disturb it.
    model.train().eval()
    other = make_frame(7, scene="other")
    batch = model([frames[0], other, frames[1], frames[2]])
    torch.testing.assert_close(batch[3]["scores"], streamed[2]["scores"], atol=1e-5, rtol=1e-4)
    # ... and is still remembered by the next batch
    later = make_frame(8, scene="other", step=1)
    follow = model([later])[0]
    model.train().eval()
    model([other])
    torch.testing.assert_close(follow["scores"], model([later])[0]["scores"], atol=1e-5, rtol=1e-4)
    alone = randomized(tiny_cfg)([other])[0]
    torch.testing.assert_close(batch[1]["scores"], alone["scores"], atol=1e-5, rtol=1e-4)


def test_state_of_an_earlier_scene_is_dropped(tiny_cfg: CfgNode, make_frame: Make):
    model = randomized(tiny_cfg)
    first, later = make_frame(1), make_frame(2, step=1)
    fresh = model([later])[0]["scores"]
    model.train().eval()
    model([first])
    assert not torch.equal(model([later])[0]["scores"], fresh)
    model.train().eval()
    model([first])
    model([make_frame(3, scene="other")])
    torch.testing.assert_close(model([later])[0]["scores"], fresh)


def test_with_its_memory_cleared_every_frame_is_a_first_one(tiny_cfg: CfgNode, make_frame: Make):
    frames = [make_frame(1 + step, step=step) for step in range(3)]
    model = randomized(tiny_cfg)
    remembering = [model([frame])[0]["scores"] for frame in frames]
    alone = [randomized(tiny_cfg)([frame])[0]["scores"] for frame in frames]
    tiny_cfg.MODEL.BEVFORMER.CLEAR_MEMORY = True
    clearing = randomized(tiny_cfg)
    cleared = [clearing([frame])[0]["scores"] for frame in frames]
    assert all(torch.equal(a, b) for a, b in zip(cleared, alone, strict=True))
    assert torch.equal(remembering[0], cleared[0])
    assert not torch.equal(remembering[1], cleared[1]) and not torch.equal(remembering[2], cleared[2])
    together = clearing(frames)  # one scene in one batch
    torch.testing.assert_close(together[2]["scores"], cleared[2], atol=1e-5, rtol=1e-4)
    clearing.clear_memory = False
    again = [clearing.train().eval(), *[clearing([frame])[0]["scores"] for frame in frames]][1:]
    assert all(torch.equal(a, b) for a, b in zip(again, remembering, strict=True))


def test_state_passes_between_calls(tiny_cfg: CfgNode, make_sample: Make):
    model = randomized(tiny_cfg)
    sample = make_sample(1, history=1)
    with torch.no_grad():
        past = model.extract(model.preprocess([sample["history"][0]]))
        now = model.extract(model.preprocess([{**sample, "history": []}]), state=past.state)
        queued = model.extract(model.preprocess([sample]))
    torch.testing.assert_close(now.bev_embed, queued.bev_embed)
    assert now.state.scene_tokens == ["scene"]
    assert now.state.can_bus.dtype == torch.float64
    assert not now.state.bev_embed.requires_grad


def test_gradient_reaches_every_trainable_parameter(tiny_cfg: CfgNode, make_sample: Make):
    aux = tiny_cfg.MODEL.BEVFORMER.AUX
    aux.BEV_HEATMAP_WEIGHT = aux.IMAGE_HEATMAP_WEIGHT = 1.0
    aux.BEV_BOX_WEIGHT = aux.IMAGE_BOX_WEIGHT = 1.0
    model = randomized(tiny_cfg).train()
    losses = model([make_sample(1, history=1), make_sample(2)])
    expected = {"loss_cls", "loss_box", "loss_cls_0", "loss_box_0", "loss_bev_heatmap", "loss_image_heatmap"}
    expected |= {"loss_bev_boxes", "loss_image_boxes"}
    assert set(losses) == expected
    sum(losses.values()).backward()
    untouched = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]
    assert untouched == []


def test_history_has_no_gradient_and_no_dropout(tiny_cfg: CfgNode, make_sample: Make):
    tiny_cfg.MODEL.BEVFORMER.DROPOUT = 0.0
    model = randomized(tiny_cfg).train()
    modes = {name: module.training for name, module in model.named_modules()}
    grad_enabled = []
    model.neck.register_forward_hook(lambda *_: grad_enabled.append(torch.is_grad_enabled()))
    model([make_sample(1, history=2)])
    assert grad_enabled == [False, False, True]
    assert modes == {name: module.training for name, module in model.named_modules()}


def test_sample_without_boxes_trains(tiny_cfg: CfgNode, make_sample: Make):
    model = build_model(tiny_cfg).train()
    for batch in ([make_sample(1, boxes=0)], [make_sample(1, boxes=0), make_sample(2)]):
        losses = model(batch)
        total = sum(losses.values())
        assert torch.isfinite(total)
        total.backward()
    assert float(model([make_sample(1, boxes=0)])["loss_box"].detach()) == 0.0


def test_unseen_cells_get_the_bias(tiny_cfg: CfgNode, make_sample: Make):
    model = randomized(tiny_cfg)
    inputs = model.preprocess([make_sample(1)])
    known = model.extract(inputs)
    unseen = ~known.seen_by_any_camera()[0]
    assert 0 < int(unseen.sum()) < len(unseen)
    layer = model.encoder.layers[0].spatial_attention
    query, tokens = torch.randn(1, len(unseen), 16), torch.randn(2, 8 * 12 + 4 * 6, 16)
    with torch.no_grad():
        layer.output_proj.bias.normal_()
        out, _ = layer(query, tokens, [(8, 12), (4, 6)], model.geometry.visible_pairs(inputs.current))
    moved = out[0] - query[0] - layer.output_proj.bias
    assert moved[unseen].abs().max() < 1e-6
    assert (moved[~unseen].abs().amax(1) > 1e-3).all()


def test_padding_is_not_visible(tiny_cfg: CfgNode, make_sample: Make):
    samples = [make_sample(1)]
    tiny_cfg.MODEL.SIZE_DIVISIBILITY = 128  # 60 x 96 -> 128 x 128
    model = build_model(tiny_cfg).eval()
    frames = model.preprocess(samples).current
    assert frames.padded_size == (128, 128)
    assert torch.equal(frames.images[..., 60:, :], torch.zeros_like(frames.images[..., 60:, :]))
    visible = model.geometry.visible_pairs(frames).bev_mask
    tiny_cfg.MODEL.SIZE_DIVISIBILITY = 1
    unpadded = build_model(tiny_cfg).eval()
    exact = unpadded.geometry.visible_pairs(unpadded.preprocess(samples).current).bev_mask
    assert torch.equal(visible, exact)
    tiny_cfg.MODEL.SIZE_DIVISIBILITY = 128
    tiny_cfg.MODEL.BEVFORMER.LEGACY.PADDING_VISIBLE = True
    legacy = build_model(tiny_cfg).eval()
    assert legacy.geometry.visible_pairs(frames).bev_mask.sum() > visible.sum()


def test_legacy_switches_change_the_documented_outputs(tiny_cfg: CfgNode):
    motion = torch.zeros(1, 18, dtype=torch.float64)
    motion[0, :2], motion[0, 16], motion[0, 17] = torch.tensor([3.0, 4.0]), 0.3, 10.0

    def geometry(**legacy: Any) -> BEVGeometry:
        cfg = tiny_cfg.clone()
        for key, value in legacy.items():
            cfg.MODEL.BEVFORMER.LEGACY[key] = value
        return build_model(cfg).geometry

    right = geometry()
    references = right.temporal_reference_points(motion, [True])
    aliased = geometry(ALIASED_SHIFT=True).temporal_reference_points(motion, [True])
    assert torch.equal(references[:, 0], aliased[:, 0])
    assert torch.equal(aliased[:, 0], aliased[:, 1])
    assert not torch.equal(references[:, 0], references[:, 1])
    assert right.rotate_center == (6.0, 4.5)
    off_center = geometry(ROTATE_CENTER=[100, 100])
    bev = torch.randn(1, 108, 16)
    assert not torch.equal(right.align(bev, motion), off_center.align(bev, motion))
    now, before = motion.clone(), motion.clone()
    now[0, 17], before[0, 17] = 1.0, 359.0
    assert float(right.motion(now, before, [True])[0, 17]) == 2.0
    assert float(geometry(UNWRAPPED_YAW=True).motion(now, before, [True])[0, 17]) == -358.0


@pytest.mark.parametrize("train", [True, False])
def test_bfloat16_autocast(tiny_cfg: CfgNode, make_sample: Make, train: bool):
    model = randomized(tiny_cfg).train(train)
    samples = [make_sample(1, history=1), make_sample(2)]
    with torch.autocast("cpu", torch.bfloat16):
        inputs = model.preprocess(samples)
        known = model.extract(inputs, BEVKnowledge.costly_fields())
        losses = model.losses(known, model.targets(samples, inputs))
    for tensor in (*known.temporal_attention, *known.spatial_attention, known.class_logits, known.box_codes):
        assert tensor.dtype == torch.float32
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert known.backbone["res3"].dtype == torch.bfloat16
    sum(losses.values()).backward()


def test_attention_shapes_and_wants(tiny_cfg: CfgNode, make_sample: Make):
    model = build_model(tiny_cfg).eval()
    inputs = model.preprocess([make_sample(1), make_sample(2)])
    known = model.extract(inputs, BEVKnowledge.costly_fields())
    assert [w.shape for w in known.temporal_attention] == [(2, 108, 2, 2, 1, 4)] * 2
    assert [w.shape for w in known.spatial_attention] == [(2, 108, 2, 2, 8)] * 2
    torch.testing.assert_close(known.temporal_attention[0].sum((-1, -2)), torch.ones(2, 108, 2, 2))
    torch.testing.assert_close(known.spatial_attention[0].sum((-1, -2)), torch.ones(2, 108, 2))
    assert known.bev_mask.shape == (2, 2, 108)
    assert [f.shape for f in known.fpn] == [(4, 16, 8, 12), (4, 16, 4, 6)]
    assert known.fpn_strides == [8, 16]
    assert known.bev_shape == (9, 12)
    bare = model.extract(inputs)
    assert bare.backbone is bare.fpn is bare.temporal_attention is bare.spatial_attention is None
    with pytest.raises(ValueError, match="surprise"):
        model.extract(inputs, frozenset({"surprise"}))


def test_inheritable_parameters_are_the_models_own(tiny_cfg: CfgNode):
    model = build_model(tiny_cfg)
    parameters = {id(parameter) for parameter in model.parameters()}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.inheritable().items()}
    assert shapes == {
        "bev_queries": (108, 16),
        "bev_position.row": (9, 8),
        "bev_position.column": (12, 8),
        "object_queries": (12, 32),
        "reference_points.weight": (3, 16),
        "reference_points.bias": (3,),
        "level_embeddings": (4, 16),
        "camera_embeddings": (2, 16),
        "can_bus_mlp.0.weight": (8, 18),
        "can_bus_mlp.0.bias": (8,),
        "can_bus_mlp.2.weight": (16, 8),
        "can_bus_mlp.2.bias": (16,),
        "can_bus_mlp.4.weight": (16,),
        "can_bus_mlp.4.bias": (16,),
    }
    assert all(id(parameter) in parameters for parameter in model.inheritable().values())


def test_bgr_models_get_bgr_pixels(tiny_cfg: CfgNode, make_sample: Make):
    samples = [make_sample(1)]
    rgb = build_model(tiny_cfg).preprocess(samples).current.images
    tiny_cfg.MODEL.PIXEL_FORMAT = "BGR"
    tiny_cfg.MODEL.PIXEL_MEAN = tiny_cfg.MODEL.PIXEL_MEAN[::-1]
    tiny_cfg.MODEL.PIXEL_STD = tiny_cfg.MODEL.PIXEL_STD[::-1]
    torch.testing.assert_close(build_model(tiny_cfg).preprocess(samples).current.images, rgb.flip(2))


def test_bad_samples_are_named(tiny_cfg: CfgNode, make_sample: Make):
    model = build_model(tiny_cfg).train()
    sample = make_sample(1)
    name = sample["sample_id"]
    with pytest.raises(KeyError, match=rf"{name}.*can_bus"):
        model([{key: value for key, value in sample.items() if key != "can_bus"}])
    with pytest.raises(ValueError, match=rf"{name}.*\(1, 3, 60, 96\).*INPUT.CAMERAS"):
        model([{**sample, "images": sample["images"][:1]}])
    boxes = sample["boxes"].tensor.clone()
    boxes[1, 7] = float("nan")
    with pytest.raises(ValueError, match=rf"{name}: box 1 is .*nan"):
        model([{**sample, "boxes": Boxes3D(boxes)}])
    with pytest.raises(ValueError, match=rf"{name}.*7 columns, no velocity"):
        model([{**sample, "boxes": Boxes3D(boxes[:, :7])}])
    with pytest.raises(ValueError, match=rf"{name}: labels are .*0..9"):
        model([{**sample, "labels": torch.tensor([0, 10, 1])}])
    with pytest.raises(KeyError, match="annotated split"):
        model([{key: value for key, value in sample.items() if key != "labels"}])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("NUM_HEADS", 3, "OUT_CHANNELS 16 must be a multiple of 2"),
        ("SPATIAL_POINTS", 6, "SPATIAL_POINTS 6 must be a multiple"),
        ("NUM_FEATURE_LEVELS", 1, "NUM_FEATURE_LEVELS 1 must be at least"),
        ("QUERY_INIT", "magic", "QUERY_INIT is 'magic'"),
        ("PREV_BEV_SAMPLING", "cubic", "PREV_BEV_SAMPLING is 'cubic'"),
        ("BEV_SHAPE", [50], r"BEV_SHAPE is \[50\]"),
        ("POST_CENTER_RANGE", [-9.0, 9.0], r"POST_CENTER_RANGE \[-9.0, 9.0\]"),
    ],
)
def test_contradicting_keys_are_errors(tiny_cfg: CfgNode, key: str, value: Any, message: str):
    tiny_cfg.MODEL.BEVFORMER[key] = value
    with pytest.raises(ValueError, match=message):
        build_model(tiny_cfg)


def test_point_range_is_checked(tiny_cfg: CfgNode):
    tiny_cfg.INPUT.POINT_RANGE = [9.0, -9.0, -5.0, -9.0, 9.0, 3.0]
    with pytest.raises(ValueError, match=r"INPUT\.POINT_RANGE is \[9.0, .*each first number below"):
        build_model(tiny_cfg)


def test_grid_queries_start_on_a_grid(tiny_cfg: CfgNode):
    tiny_cfg.MODEL.BEVFORMER.QUERY_INIT = "grid"
    model = build_model(tiny_cfg)
    reference = model.decoder.reference_points(model.object_queries[:, :16]).sigmoid()
    x = ((torch.arange(12) % 4) + 0.5) / 4
    y = (torch.arange(12) // 4 + 0.5) / 3
    torch.testing.assert_close(reference, torch.stack([x, y, torch.full((12,), 0.5)], 1))


@pytest.mark.parametrize("enabled", [True, False])
def test_teacher_applies_the_mask_drawn_for_the_student(tiny_cfg: CfgNode, make_sample: Make, enabled: bool):
    """A teacher reads the student's masked images, also where its own config has the mask off."""
    tiny_cfg.MODEL.GRID_MASK.PROB = 1.0
    student = build_model(tiny_cfg).train()
    tiny_cfg.MODEL.GRID_MASK.ENABLED, tiny_cfg.MODEL.GRID_MASK.RATIO = enabled, 0.2
    teacher = randomized(tiny_cfg)
    plain = [make_sample(1, history=1), make_sample(2)]
    samples = student.augment(plain)
    assert all(again is first for again, first in zip(student.augment(samples), samples, strict=True))
    masked, unmasked = teacher.preprocess(samples), teacher.preprocess(plain)
    assert torch.equal(masked.current.images, student.preprocess(samples).current.images)
    assert not torch.equal(masked.current.images, unmasked.current.images)
    assert torch.equal(masked.history[0].images, unmasked.history[0].images)  # the current frame alone
