"""FitNet, AT, SP, RKD and VID: what scales and offsets of features do; recordings are in tests/golden."""

from __future__ import annotations

import pytest
import torch

from bevkd2.modeling import Knowledge
from tests.distill.methods.harness import build_pair, make_batch
from tests.distill.methods.random_maps import build, knowledge, targets


def scaled(known: Knowledge, factor: float) -> Knowledge:
    maps = [level.detach() * factor for level in known.fpn]
    return Knowledge(fpn=maps, fpn_strides=known.fpn_strides, image_sizes=known.image_sizes)


@pytest.mark.parametrize("name", ["AT", "SP", "RKD"])
def test_the_scale_of_either_model_does_not_matter(name: str) -> None:
    method, student, teacher = build(name), knowledge(4, 1, 3), knowledge(6, 2, 3)
    loss = method(student, teacher, targets(3)).item()
    assert loss > 0
    assert method(scaled(student, 5.0), teacher, targets(3)).item() == pytest.approx(loss, rel=1e-6)
    assert method(student, scaled(teacher, 0.1), targets(3)).item() == pytest.approx(loss, rel=1e-6)


def test_fitnet_grows_with_the_square_of_the_difference() -> None:
    method, student = build("FitNet", 4, 4, ADAPTER="none"), knowledge(4, 1)
    loss = method(student, scaled(student, 2.0), None).item()
    mean = sum(level.square().mean().item() for level in student.fpn) / 2
    assert loss == pytest.approx(mean, rel=1e-6)
    assert method(student, scaled(student, 3.0), None).item() == pytest.approx(4 * loss, rel=1e-6)


def test_fitnet_is_perspective_feature_without_its_matrix() -> None:
    batch, losses = make_batch("PGD", 1, 2), []
    for name, settings in (("FitNet", {}), ("PerspectiveFeature", {"PERSPECTIVE": False})):
        model = build_pair("PGD", name, **settings)
        model.eval()
        model.training = True
        found = {key: value.item() for key, value in model(batch).items() if "distill" in key}
        losses += found.values()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_another_power_of_attention_is_its_formula() -> None:
    student, teacher = knowledge(4, 1), knowledge(6, 2)
    expected = 0.0
    for ours, theirs in zip(student.fpn, teacher.fpn, strict=True):
        maps = [features.abs().pow(3).mean(dim=1).flatten(1) for features in (ours, theirs)]
        unit = [values / values.norm(dim=1, keepdim=True) for values in maps]
        expected += (unit[0] - unit[1]).square().mean().item()
    assert build("AT", POWER=3.0)(student, teacher, None).item() == pytest.approx(expected, rel=1e-9)


def test_images_that_are_equal_have_finite_relations_and_gradients() -> None:
    for name in ("SP", "RKD"):
        student = knowledge(4, 1, 3)
        with torch.no_grad():
            for level in student.fpn:
                level[1:] = level[:1]
        loss = build(name)(student, knowledge(6, 2, 3), None)
        loss.backward()
        assert loss.isfinite() and all(level.grad.isfinite().all() for level in student.fpn)


def test_cameras_of_a_sample_are_rows_of_relations() -> None:
    model = build_pair("BEVFormer", "RKD")
    losses = model.train()(make_batch("BEVFormer", 1))
    assert losses["loss_distill_rkd"].item() > 0


def test_vid_weighs_channels_by_their_variance() -> None:
    method, student, teacher = build("VID", INITIAL_VARIANCE=2.0), knowledge(4, 1), knowledge(6, 2)
    first = method(student, teacher, None)
    first.backward()
    assert all(float(scale.grad.abs().min()) > 0 for scale in method.log_scales)
    expected = 0.0
    for ours, theirs, regressor in zip(student.fpn, teacher.fpn, method.regressors, strict=True):
        squares = (regressor(ours) - theirs).square()
        expected += (squares / 2.0 + torch.tensor(2.0).log()).mean().item() / 4
    assert first.item() == pytest.approx(expected, rel=1e-6)
