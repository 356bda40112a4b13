"""Depth from bins, its sharpness and its fusion."""

import pytest
import torch

from bevkd2.modeling.mono.depth import depth_confidence, depth_from_bins, fuse_depth, predicted_depth


def test_a_sure_distribution_is_its_bin():
    logits = torch.full((2, 3, 8), -50.0)
    logits[..., 5] = 50.0
    assert torch.equal(depth_from_bins(logits, 10.0), torch.full((2, 3), 50.0))
    assert torch.equal(depth_confidence(logits), torch.full((2, 3), 0.5))


def test_an_even_distribution_is_the_mean_of_all_bins():
    assert float(depth_from_bins(torch.zeros(8), 10.0)) == pytest.approx(35)
    assert float(depth_confidence(torch.zeros(8))) == pytest.approx(1 / 8)


def test_depths_are_as_exact_under_autocast():
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fuse_depth(logits[:, 0], depth_from_bins(logits, 10.0), torch.tensor(0.3))
    assert torch.equal(found, fuse_depth(logits[:, 0], depth_from_bins(logits, 10.0), torch.tensor(0.3)))


def test_two_even_bins_are_as_sure_as_one():
    logits = torch.tensor([0.0, 0.0, -50.0, -50.0])
    assert float(depth_from_bins(logits, 4.0)) == pytest.approx(2)
    assert float(depth_confidence(logits)) == pytest.approx(0.5)


@pytest.mark.parametrize(("fuse_lambda", "expected"), [(50.0, 10.0), (-50.0, 30.0), (0.0, 20.0)])
def test_lambda_weighs_the_direct_depth(fuse_lambda: float, expected: float):
    fused = fuse_depth(torch.tensor(10.0), torch.tensor(30.0), torch.tensor(fuse_lambda))
    assert float(fused) == pytest.approx(expected)


def test_a_head_means_the_fused_depth_where_it_has_bins_and_the_direct_one_else():
    direct, bins = torch.tensor([10.0]), torch.tensor([[-50.0, -50.0, -50.0, 50.0]])
    depth, probabilistic = predicted_depth(direct, bins, torch.tensor(0.0), 10.0)
    assert (depth.item(), probabilistic.item()) == (pytest.approx(20), pytest.approx(30))
    assert predicted_depth(direct, None, None, 10.0) == (direct, None)
    with pytest.raises(ValueError, match="the head has depth bins, so its fuse_lambda is needed"):
        predicted_depth(direct, bins, None, 10.0)
