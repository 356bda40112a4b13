"""Losses of the dense heads: published numbers, hand-computed terms, gradients, empty batches."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor

from bevkd2.modeling.mono.fcos3d.head import DenseOutputs
from bevkd2.modeling.mono.fcos3d.losses import DenseCriterion, DenseLossOptions
from bevkd2.modeling.mono.fcos3d.targets import dense_targets
from bevkd2.modeling.mono.grid import flatten_levels
from bevkd2.modeling.mono.inputs import MonoTargets
from tests.modeling.mono import scenes

OFFSET = 0.7854
FUSE = torch.tensor(0.3)
NUSCENES_WEIGHTS = [1, 1, 0.2, 1, 1, 1, 1, 0.05, 0.05]


def _criterion(kitti: bool, **settings) -> DenseCriterion:
    shared = {"direction_offset": OFFSET}
    if kitti:
        published = {"box_code_weights": [1] * 7, "depth_beta": 3.0}
        return DenseCriterion(DenseLossOptions(**shared | published | settings))
    nuscenes = {
        "box_code_weights": NUSCENES_WEIGHTS,
        "box2d_weight": 0.2,
        "consistency_depth": "fused",
    }
    return DenseCriterion(DenseLossOptions(**shared | nuscenes | settings))


def _targets(kitti: bool, images: list, **settings) -> MonoTargets:
    return scenes.annotations(images, columns=7 if kitti else 9, attributes=not kitti, **settings)


def _perfect(targets: MonoTargets, kitti: bool) -> DenseOutputs:
    """Outputs that say at every positive location what its target says."""
    wanted = dense_targets(targets, OFFSET)
    outputs = scenes.random_outputs(len(targets.boxes), kitti=kitti)
    cells = [rows * columns for rows, columns in scenes.SHAPES]

    def put(maps: list[Tensor], values: Tensor) -> list[Tensor]:
        flat = flatten_levels(maps).detach()
        flat[wanted.images, wanted.locations] = values
        parts = flat.transpose(1, 2).split(cells, dim=2)
        return [part.unflatten(2, shape) for part, shape in zip(parts, scenes.SHAPES, strict=True)]

    columns = [wanted.offset, wanted.depth[:, None], wanted.size, wanted.yaw[:, None]]
    boxes = torch.cat(columns if kitti else [*columns, wanted.velocity], dim=1)
    return dataclasses.replace(
        outputs,
        boxes=put(outputs.boxes, boxes),
        direction=put(outputs.direction, 50.0 * torch.nn.functional.one_hot(wanted.direction, 2)),
        boxes2d=put(outputs.boxes2d, wanted.boxes2d),
        keypoints=put(outputs.keypoints, wanted.keypoints(16.0)[0]) if kitti else None,
        uncertainty=put(outputs.uncertainty, torch.zeros(len(boxes), 1)) if kitti else None,
    )


@pytest.mark.parametrize("kitti", [True, False])
def test_perfect_predictions_have_zero_loss(kitti: bool):
    targets = _targets(kitti, [[scenes.NEAR], [scenes.FAR]])
    outputs = _perfect(targets, kitti)
    direct = torch.tensor(100.0)  # the fusion takes the direct depth
    losses = _criterion(kitti)(outputs, targets, direct)
    names = {"offset", "depth", "size", "rotation", "boxes2d", "direction"}
    names |= {"keypoints"} if kitti else {"velocity"}
    assert {name: losses[f"loss_{name}"].item() for name in names} == pytest.approx(
        dict.fromkeys(names, 0), abs=1e-6
    )


def test_consistency_is_zero_where_the_2d_box_is_the_projected_3d_box():
    # Objects whose projection the image does not clip.
    targets = _targets(False, [[scenes.FAR]], translation=False)
    losses = _criterion(False)(_perfect(targets, False), targets, torch.tensor(100.0))
    assert losses["loss_consistency"].item() == pytest.approx(0, abs=1e-4)


def test_terms_by_hand():
    targets = _targets(False, [[scenes.NEAR]])
    outputs = _perfect(targets, False)
    outputs.boxes = [level.clone() for level in outputs.boxes]
    for level in outputs.boxes:
        level[:, 0] += 1.0  # dx
        level[:, 2] += 2.0  # depth
        level[:, 3] += 0.05  # length, within beta
        level[:, 6] += 0.5 + math.pi  # yaw: half a turn more costs nothing
        level[:, 7] += 3.0  # vx
    losses = _criterion(False, box_beta=0.1, depth_beta=0.5)(outputs, targets, torch.tensor(100.0))
    assert losses["loss_offset"].item() == pytest.approx(1 - 0.05, rel=1e-5)
    assert losses["loss_depth"].item() == pytest.approx(0.2 * (2 - 0.25), rel=1e-5)
    assert losses["loss_size"].item() == pytest.approx(0.5 * 0.05**2 / 0.1, rel=1e-3)
    assert losses["loss_rotation"].item() == pytest.approx(math.sin(0.5) - 0.05, rel=1e-4)
    assert losses["loss_velocity"].item() == pytest.approx(0.05 * (3 - 0.05), rel=1e-4)


def test_uncertainty_scales_the_depth_loss_and_is_penalised():
    targets = _targets(True, [[scenes.NEAR]])
    outputs = _perfect(targets, True)
    outputs.boxes = [level.clone() for level in outputs.boxes]
    for level in outputs.boxes:
        level[:, 2] -= 4.0
    outputs.uncertainty = [torch.full_like(level, 0.7) for level in outputs.uncertainty]
    losses = _criterion(True)(outputs, targets, torch.tensor(100.0))
    assert losses["loss_depth"].item() == pytest.approx(math.exp(-0.7) * (4 - 1.5) + 0.7, rel=1e-4)


def test_the_depth_loss_acts_on_the_fused_depth():
    targets = _targets(True, [[scenes.NEAR]])
    outputs = _perfect(targets, True)
    depth = float(targets.depths[0])
    outputs.depth_bins = [torch.full_like(level, -1e4) for level in outputs.depth_bins]
    for level in outputs.depth_bins:
        level[:, 2] = 0  # all on the bin of 20 m
    losses = _criterion(True)(outputs, targets, torch.tensor(0.0))
    assert losses["loss_depth"].item() == pytest.approx(abs((depth + 20) / 2 - depth) - 1.5, rel=1e-4)


def test_classes_are_divided_by_positives_and_images():
    targets = _targets(True, [[scenes.NEAR], []])
    outputs = _perfect(targets, True)
    outputs.logits = [torch.zeros_like(level) for level in outputs.logits]
    positives = int((targets.assigned >= 0).sum())
    # Focal loss at p = 0.5: alpha or 1 - alpha times 0.25 log 2.
    entries = sum(level.numel() for level in outputs.logits)
    total = (0.25 * positives + 0.75 * (entries - positives)) * 0.25 * math.log(2)
    losses = _criterion(True)(outputs, targets, FUSE)
    assert losses["loss_cls"].item() == pytest.approx(total / (positives + 2), rel=1e-5)


def test_attributes_are_weighted_by_centerness():
    targets = _targets(False, [[scenes.NEAR, scenes.FAR]])
    outputs = _perfect(targets, False)
    wanted = dense_targets(targets, OFFSET)
    logits = flatten_levels(outputs.attributes)[wanted.images, wanted.locations]
    each = -logits.log_softmax(dim=1)[torch.arange(len(logits)), wanted.attributes]
    expected = (each * wanted.centerness).sum() / wanted.centerness.sum()
    losses = _criterion(False)(outputs, targets, FUSE)
    torch.testing.assert_close(losses["loss_attribute"], expected)


def test_code_and_loss_weights_scale_their_terms():
    targets = _targets(True, [[scenes.NEAR]])
    outputs = scenes.random_outputs(1, kitti=True)
    once = _criterion(True)(outputs, targets, FUSE)
    twice = _criterion(True, box_code_weights=[2] * 7, box2d_weight=3, keypoint_weight=0.8)(
        outputs, targets, FUSE
    )
    factors = {"offset": 2, "depth": 2, "size": 2, "rotation": 2, "boxes2d": 3, "consistency": 3}
    factors |= {"keypoints": 4, "cls": 1, "direction": 1, "centerness": 1}
    assert {name: (twice[f"loss_{name}"] / once[f"loss_{name}"]).item() for name in factors} == pytest.approx(
        factors
    )
    halved = _criterion(True, loss_weights={"cls": 0.5})(outputs, targets, FUSE)
    assert halved["loss_cls"].item() == pytest.approx(0.5 * once["loss_cls"].item())


@pytest.mark.parametrize("kitti", [True, False])
def test_gradients_in_double(kitti: bool):
    targets = _targets(kitti, [[scenes.FAR]], dtype=torch.float64)
    outputs = scenes.random_outputs(1, kitti=kitti, dtype=torch.float64)
    criterion = _criterion(kitti).double()
    wanted = dense_targets(targets, OFFSET)
    fuse = FUSE.double().requires_grad_()
    leaves = scenes.leaves(outputs)
    total = sum(criterion(outputs, targets, fuse).values())
    gradients = torch.autograd.grad(total, [*leaves.values(), fuse])
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(g.shape, generator=generator, dtype=torch.float64) * 1e-6 for g in gradients]
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))

    def value(sign: float) -> float:
        moved = {k: v.detach() + sign * d for (k, v), d in zip(leaves.items(), directions[:-1], strict=True)}
        maps = {name: [moved[f"{name}/{i}"] for i in range(2)] for name in scenes.maps_of(outputs)}
        shifted = DenseOutputs(**maps)
        return sum(criterion(shifted, targets, FUSE.double() + sign * directions[-1]).values()).item()

    assert len(wanted.images)
    assert (value(1) - value(-1)) / 2 == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("kitti", [True, False])
def test_without_positives_losses_are_zero_and_reach_every_output(kitti: bool):
    targets = _targets(kitti, [[], []])
    outputs, fuse = scenes.random_outputs(2, kitti=kitti), FUSE.clone().requires_grad_()
    losses = _criterion(kitti)(outputs, targets, fuse)
    assert {name for name, loss in losses.items() if loss.item() != 0} == {"loss_cls"}
    sum(losses.values()).backward()
    gradients = {name: leaf.grad for name, leaf in scenes.leaves(outputs).items()} | {"fuse": fuse.grad}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())


def test_infinite_outputs_at_background_give_finite_losses_without_positives():
    outputs = scenes.random_outputs(1, kitti=True)
    outputs.boxes = [torch.full_like(level, math.inf) for level in outputs.boxes]
    losses = _criterion(True)(outputs, _targets(True, [[]]), FUSE)
    assert all(bool(loss.isfinite()) for loss in losses.values())


@pytest.mark.parametrize("kitti", [True, False])
def test_a_batch_of_two_is_two_images_but_for_the_normalisers(kitti: bool):
    images = [[scenes.NEAR, scenes.FAR], [scenes.LARGE]]
    outputs = scenes.random_outputs(2, kitti=kitti)
    criterion = _criterion(kitti)
    both = _targets(kitti, images)
    together = criterion(outputs, both, FUSE)
    positives = (both.assigned >= 0).sum(dim=1)
    sums: dict[str, float] = {}
    for i, image in enumerate(images):
        one = DenseOutputs(
            **{name: [level[i : i + 1] for level in maps] for name, maps in scenes.maps_of(outputs).items()}
        )
        for name, loss in criterion(one, _targets(kitti, [image]), FUSE).items():
            count = int(positives[i]) + (name == "loss_cls")
            sums[name] = sums.get(name, 0) + loss.item() * count
    counted = {
        name: value / (int(positives.sum()) + 2 * (name == "loss_cls"))
        for name, value in sums.items()
        if name != "loss_attribute"  # divided by the sum of centre-ness instead
    }
    assert {name: together[name].item() for name in counted} == pytest.approx(counted, rel=1e-4)


def test_boxes_behind_the_camera_have_finite_losses():
    close = [0.5, 0.2, 1.5, 4.5, 1.6, 1.5, math.pi / 2, 0.0, 0.0]
    targets = _targets(True, [[close]])
    outputs = scenes.random_outputs(1, kitti=True)
    losses = _criterion(True)(outputs, targets, FUSE)
    sum(losses.values()).backward()
    assert int((targets.assigned >= 0).sum())
    assert losses["loss_keypoints"].item() < 100
    assert all(bool(leaf.grad.isfinite().all()) for leaf in scenes.leaves(outputs).values())


def test_a_box_that_reaches_behind_the_camera_has_no_consistency():
    close = [0.5, 0.2, 1.5, 4.5, 1.6, 1.5, math.pi / 2, 0.0, 0.0]
    targets = _targets(True, [[close]])
    losses = _criterion(True)(_perfect(targets, True), targets, FUSE)
    assert losses["loss_consistency"].item() == 0


def test_a_wrong_depth_does_not_change_the_projected_extent_on_the_axis():
    # The rectangle is seen from the annotated distance, so that the consistency does not teach depth by size.
    straight = [0.0, 0.0, 12.0, 3.9, 1.6, 1.5, 0.2, 0.0, 0.0]
    targets = _targets(False, [[straight]], translation=False)
    outputs = _perfect(targets, False)
    right = _criterion(False)(outputs, targets, torch.tensor(100.0))
    outputs.boxes = [level + torch.eye(9)[2][:, None, None] * 8 for level in outputs.boxes]
    wrong = _criterion(False)(outputs, targets, torch.tensor(100.0))
    assert wrong["loss_depth"].item() > 1
    assert wrong["loss_consistency"].item() == pytest.approx(right["loss_consistency"].item(), abs=1e-5)


def test_fcos3d_without_optional_branches():
    outputs = dataclasses.replace(
        scenes.random_outputs(1, kitti=False), depth_bins=None, boxes2d=None, attributes=None
    )
    losses = _criterion(False)(outputs, _targets(False, [[scenes.NEAR]]))
    names = {"cls", "offset", "depth", "size", "rotation", "velocity", "direction", "centerness"}
    assert set(losses) == {f"loss_{name}" for name in names}


def test_the_consistency_depth_is_a_choice():
    targets, outputs = _targets(True, [[scenes.NEAR]]), scenes.random_outputs(1, kitti=True)
    outputs.depth_bins = [level.detach() + torch.arange(8.0)[:, None, None] for level in outputs.depth_bins]
    values = {
        depth: _criterion(True, consistency_depth=depth)(outputs, targets, FUSE)["loss_consistency"].item()
        for depth in ("direct", "fused")
    }
    assert values["direct"] != pytest.approx(values["fused"], rel=1e-3)


def test_losses_are_in_float32_under_autocast():
    targets = _targets(True, [[scenes.NEAR]])
    outputs = scenes.random_outputs(1, kitti=True)
    half = copy.copy(outputs)
    half.logits = [level.bfloat16() for level in outputs.logits]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = _criterion(True)(half, targets, FUSE)
        whole = _criterion(True)(outputs, targets, FUSE)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    without = _criterion(True)(outputs, targets, FUSE)
    assert {name: loss.item() for name, loss in whole.items()} == pytest.approx(
        {name: loss.item() for name, loss in without.items()}, rel=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"box_code_weights": [1] * 8}, r"box_code_weights has 8 entries, expected 7, or 9"),
        ({"consistency_depth": "best"}, r"consistency_depth is 'best', expected 'direct' or 'fused'"),
        ({"loss_weights": {"clss": 1.0}}, r"unknown losses \['clss'\]"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        _criterion(True, **settings)


def test_data_without_the_targets_of_a_branch_is_refused():
    outputs = scenes.random_outputs(1, kitti=False)
    without_attributes = scenes.annotations([[scenes.NEAR]], attributes=False)
    with pytest.raises(ValueError, match="attributes"):
        _criterion(False)(outputs, without_attributes, FUSE)
    with pytest.raises(ValueError, match="velocities"):
        _criterion(False)(outputs, scenes.annotations([[scenes.NEAR]], columns=7), FUSE)
    with pytest.raises(ValueError, match="predicts 9 numbers per box, box_code_weights has 7"):
        _criterion(True)(outputs, scenes.annotations([[scenes.NEAR]]), FUSE)
