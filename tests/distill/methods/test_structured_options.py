"""The readings of structured distillation that are settings, each against loops over cells."""

import math

import pytest
import torch

from bevkd2.ops import attention_l2, bev_response_l2
from tests.distill.methods.test_methods import HEADS, B, build, knowledge

LAYERS = 2
CELLS = 12


def weight_of(mask, b, cell, count, unseen):
    cameras = int(mask[b, :, cell].sum())
    if count == "camera":
        return max(1, cameras) if unseen else cameras
    return 1 if unseen or cameras else 0


def squares(students, teachers, mask, reduction, count="cell", unseen=False):
    """The reduced L2 of every layer."""
    losses = []
    for student, teacher in zip(students, teachers, strict=True):
        sums, counted, entries = [0.0] * B, 0.0, student[0, 0].numel()
        for b in range(B):
            for cell in range(CELLS):
                weight = weight_of(mask, b, cell, count, unseen)
                sums[b] += weight * ((student[b, cell] - teacher[b, cell]) ** 2).sum().item()
                counted += weight
        if reduction == "norm":
            losses.append(sum(math.sqrt(total) for total in sums) / B)
        else:
            losses.append(sum(sums) / {"sum": B, "cell": counted, "mean": counted * entries}[reduction])
    return losses


def divergences(students, teachers, mask, reduction, count="cell", unseen=False):
    """The reduced KL of every layer: of each head's (and queue's) distribution."""
    losses = []
    for student, teacher in zip(students, teachers, strict=True):
        total, counted, per_cell = 0.0, 0.0, student[0, 0].shape[:-2].numel()
        for b in range(B):
            for cell in range(CELLS):
                weight = weight_of(mask, b, cell, count, unseen)
                counted += weight
                ours, theirs = student[b, cell].flatten().tolist(), teacher[b, cell].flatten().tolist()
                total += weight * sum(t * math.log(t / s) for s, t in zip(ours, theirs, strict=True))
        losses.append(total / {"sum": B, "cell": counted, "mean": counted * per_cell}[reduction])
    return losses


def test_defaults_are_the_ops_bit_for_bit():
    student, teacher = knowledge(0), knowledge(1)
    seen = student.seen_by_any_camera()
    embeds = student.bev_embed.requires_grad_(), teacher.bev_embed
    loss = build("BEVResponse")(student, teacher, None)
    expected = bev_response_l2(*embeds, seen, reduction="norm")
    assert torch.equal(loss, expected)
    gradients = [torch.autograd.grad(value, student.bev_embed)[0] for value in (loss, expected)]
    assert torch.equal(*gradients)
    expected = attention_l2(student.spatial_attention, teacher.spatial_attention, seen, reduction="norm")
    assert torch.equal(build("SpatialAttention")(student, teacher, None), expected.mean())


@pytest.mark.parametrize(("count", "unseen"), [("camera", False), ("camera", True), ("cell", True)])
@pytest.mark.parametrize("reduction", ["norm", "cell"])
def test_cells_count_once_or_once_per_camera(count, unseen, reduction):
    student, teacher = knowledge(0), knowledge(1)
    options = {"COUNT": count, "UNSEEN": unseen, "REDUCTION": reduction}
    fields = student.spatial_attention, teacher.spatial_attention
    expected = squares(*fields, student.bev_mask, reduction, count, unseen)
    loss = build("SpatialAttention", **options)(student, teacher, None)
    assert loss.item() == pytest.approx(sum(expected) / LAYERS, rel=1e-5)
    responses = [[known.bev_embed.abs().mean(-1, keepdim=True)] for known in (student, teacher)]
    (expected,) = squares(*responses, student.bev_mask, reduction, count, unseen)
    assert build("BEVResponse", **options)(student, teacher, None).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["temporal", "spatial"])
def test_layers_are_averaged_or_summed(name):
    student, teacher = knowledge(0), knowledge(1)
    fields = [getattr(known, f"{name}_attention") for known in (student, teacher)]
    expected = squares(*fields, student.bev_mask, "norm")
    for how, divisor in (("mean", LAYERS), ("sum", 1)):
        loss = build(f"{name.title()}Attention", LAYERS=how)(student, teacher, None)
        assert loss.item() == pytest.approx(sum(expected) / divisor, rel=1e-5)


@pytest.mark.parametrize(("count", "unseen"), [("cell", False), ("camera", True)])
@pytest.mark.parametrize("reduction", ["sum", "cell", "mean"])
@pytest.mark.parametrize("name", ["temporal", "spatial"])
def test_kl_of_attention_is_that_of_every_distribution(name, reduction, count, unseen):
    student, teacher = knowledge(0), knowledge(1)
    fields = [getattr(known, f"{name}_attention") for known in (student, teacher)]
    expected = divergences(*fields, student.bev_mask, reduction, count, unseen)
    options = {"DISTANCE": "kl", "REDUCTION": reduction, "COUNT": count, "UNSEEN": unseen}
    loss = build(f"{name.title()}Attention", **options)(student, teacher, None)
    assert loss.item() == pytest.approx(sum(expected) / LAYERS, rel=1e-4)
    same = build(f"{name.title()}Attention", **options)(student, student, None)
    assert abs(same.item()) < 1e-5


def test_kl_of_attention_is_finite_where_a_weight_is_zero():
    student, teacher = knowledge(0), knowledge(1)
    for known, entry in ((student, 0), (teacher, 1)):
        weights = known.spatial_attention[0]
        weights[0, 0] = 0.0
        weights[0, 0, :, 0, entry] = 1.0
    ours = student.spatial_attention[0].requires_grad_()
    loss = build("SpatialAttention", DISTANCE="kl", REDUCTION="cell")(student, teacher, None)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(ours.grad).all()


@pytest.mark.parametrize("count", ["cell", "camera"])
@pytest.mark.parametrize("reduction", ["sum", "cell"])
def test_kl_of_responses_is_that_of_a_distribution_over_the_counted_cells(reduction, count):
    student, teacher = knowledge(0), knowledge(1)
    student.bev_embed.requires_grad_()
    loss = build("BEVResponse", DISTANCE="kl", REDUCTION=reduction, COUNT=count)(student, teacher, None)
    total, counted = 0.0, 0
    for b in range(B):
        weights = [weight_of(student.bev_mask, b, cell, count, False) for cell in range(CELLS)]
        counted += sum(weights)
        shares = []
        for known in (teacher, student):
            response = known.bev_embed[b].detach().abs().mean(-1).tolist()
            parts = [w * math.exp(r) for w, r in zip(weights, response, strict=True)]
            shares.append([part / sum(parts) for part in parts])
        total += sum(t * math.log(t / s) for t, s in zip(*shares, strict=True) if t > 0)
    assert loss.item() == pytest.approx(total / (B if reduction == "sum" else counted), rel=1e-4)
    loss.backward()
    gradient = student.bev_embed.grad
    assert torch.isfinite(gradient).all() and not gradient[0, 5].any() and gradient[0, 4].any()


@pytest.mark.parametrize("reduction", ["sum", "cell", "mean"])
@pytest.mark.parametrize("name", ["BEVResponse", "SpatialAttention"])
def test_kl_without_a_seen_cell_is_zero(name, reduction):
    student, teacher = knowledge(0), knowledge(1)
    student.bev_mask[:] = False
    compared = student.bev_embed if name == "BEVResponse" else student.spatial_attention[0]
    compared.requires_grad_()
    loss = build(name, DISTANCE="kl", REDUCTION=reduction)(student, teacher, None)
    loss.backward()
    assert loss.item() == 0 and not compared.grad.any()


@pytest.mark.parametrize("name", ["temporal", "spatial"])
def test_offsets_are_compared_beside_the_weights(name):
    student, teacher = knowledge(0), knowledge(1)
    method = build(f"{name.title()}Attention", OFFSETS=0.25)
    assert method.requires == {f"{name}_attention", f"{name}_offsets"}
    losses = method(student, teacher, None)
    plain = build(f"{name.title()}Attention")
    assert plain.requires == {f"{name}_attention"}
    assert torch.equal(losses[f"{name}_attention"], plain(student, teacher, None))
    fields = [getattr(known, f"{name}_offsets") for known in (student, teacher)]
    expected = sum(squares(*fields, student.bev_mask, "norm")) / LAYERS
    assert losses[f"{name}_offsets"].item() == pytest.approx(0.25 * expected, rel=1e-5)
    teacher.spatial_offsets[0] = teacher.temporal_offsets[0] = torch.zeros(B, CELLS, HEADS, 3, 1, 2)
    with pytest.raises(ValueError, match=r"the offsets of the student's layer 0 are \(2, 12, 2, 2"):
        method(student, teacher, None)


def test_responses_of_earlier_layers():
    student, teacher = knowledge(0), knowledge(1)
    method = build("BEVResponse", SOURCES=["bev", "bev.layers.0"], LAYERS="sum")
    assert method.requires == {"bev_mask", "bev_embed", "layer_outputs"}
    loss = method(student, teacher, None)
    expected = 0.0
    for pick in (lambda known: known.bev_embed, lambda known: known.layer_outputs[0]):
        responses = [[pick(known).abs().mean(-1, keepdim=True)] for known in (student, teacher)]
        expected += squares(*responses, student.bev_mask, "norm")[0]
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_settings_that_do_not_go_together_name_the_key():
    with pytest.raises(ValueError, match=r"DISTILL\.SPATIAL_ATTENTION\.REDUCTION: norm, which is the root"):
        build("SpatialAttention", DISTANCE="kl")
    with pytest.raises(ValueError, match=r"DISTILL\.BEV_RESPONSE\.COUNT: 'twice'; expected one of cell, cam"):
        build("BEVResponse", COUNT="twice")
    with pytest.raises(ValueError, match=r"DISTILL\.TEMPORAL_ATTENTION\.OFFSETS: -1\.0"):
        build("TemporalAttention", OFFSETS=-1.0)
    with pytest.raises(ValueError, match=r"DISTILL\.BEV_RESPONSE\.SOURCES: 'bev\.layers\.7'"):
        build("BEVResponse", SOURCES=["bev.layers.7"])
