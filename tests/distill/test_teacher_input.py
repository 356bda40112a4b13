"""A teacher that gets samples of its own: larger images, another history."""

import pytest
import torch
import torch.nn.functional as F

from bevkd2.d2 import EventStorage
from bevkd2.distill import TEACHER_KEY
from tests.distill.methods.harness import build_pair, distill_losses, make_batch
from tests.distill.pairs import train_losses


def enlarged(sample, factor=2):
    """The sample with images twice as large, and the geometry that belongs to them."""
    key, matrix = ("images", "lidar2img") if "images" in sample else ("image", "cam2img")
    images = sample[key].float()
    images = F.interpolate(images if images.ndim == 4 else images[None], scale_factor=factor)
    scale = torch.diag(torch.tensor([factor, factor, 1.0, 1.0]))
    larger = {**sample, key: images.to(torch.uint8).reshape(*sample[key].shape[:-2], *images.shape[-2:])}
    larger[matrix] = scale @ sample[matrix]
    if "history" in sample:
        larger["history"] = [enlarged(frame, factor) for frame in sample["history"]]
    return larger


@pytest.mark.parametrize(
    ("detector", "method"),
    [("BEVFormer", "PKD"), ("BEVFormer", "BEVResponse"), ("PGD", "PKD"), ("PGD", "PerspectiveFeature")],
)
def test_methods_compare_what_a_teacher_of_larger_images_knows(detector, method):
    model = build_pair(detector, method)
    batch = make_batch(detector, 1, 2)
    (plain,) = distill_losses(model, batch).values()
    own = [{**sample, TEACHER_KEY: enlarged(sample)} for sample in batch]
    (loss,) = distill_losses(model, own).values()
    assert loss.isfinite() and not torch.equal(loss, plain)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.student.parameters())


def test_losses_on_predictions_need_the_same_locations():
    model = build_pair("PGD", "DepthGuidedPrediction")
    own = [{**sample, TEACHER_KEY: enlarged(sample)} for sample in make_batch("PGD", 1)]
    with pytest.raises(ValueError, match=r"DISTILL\.DEPTH_GUIDED: the student predicts .* the teacher"):
        distill_losses(model, own)


def test_a_longer_history_changes_the_teachers_view_alone():
    model = build_pair("BEVFormer", "BEVResponse", same=True)
    model.student.eval()
    model.training = True
    (sample,) = make_batch("BEVFormer", 1)
    short = {**sample, "history": []}
    with EventStorage():
        same = model([short])["loss_distill_bev_response"]
        longer = model([{**short, TEACHER_KEY: sample}])["loss_distill_bev_response"]
    assert same.item() == pytest.approx(0, abs=1e-6) and longer.item() > 1e-3


@pytest.mark.parametrize("shared", [True, False])
def test_the_grid_mask_is_shared_at_the_scale_of_the_teachers_images(shared, monkeypatch):
    options = ("MODEL.GRID_MASK.ENABLED", True, "MODEL.GRID_MASK.PROB", 1.0)
    model = build_pair("BEVFormer", "PKD", options=options)
    model.share_augmentation = shared
    seen = {}
    for role, detector in (("teacher", model.teacher), ("student", model.student)):

        def keep(samples, role=role, original=detector.preprocess):
            seen[role] = [sample.get("grid_mask") for sample in samples]
            return original(samples)

        monkeypatch.setattr(detector, "preprocess", keep)
    batch = [{**sample, TEACHER_KEY: enlarged(sample)} for sample in make_batch("BEVFormer", 1)]
    train_losses(model, batch)
    (students,), (teachers,) = seen["student"], seen["teacher"]
    assert students is not None
    assert teachers == (students.scaled(2.0) if shared else None)
