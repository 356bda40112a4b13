"""Averages of annotations by class."""

from __future__ import annotations

import pytest
import torch

from bevkd2.modeling.mono.fcos3d.priors import compute_priors

NAMES = ("Pedestrian", "Car")


def test_means_and_deviations_by_class():
    priors = compute_priors(
        torch.tensor([10.0, 14.0, 30.0, 32.0, 40.0]),
        torch.tensor([[0.8, 1.7, 0.6], [1.0, 1.9, 0.4], [4.0, 1.5, 1.6], [4.0, 1.5, 1.6], [3.4, 1.2, 1.9]]),
        torch.tensor([0, 0, 1, 1, 1]),
        NAMES,
    )
    assert priors.counts == [2, 3]
    assert priors.depths[0] == pytest.approx((12, 2))
    assert priors.depths[1] == pytest.approx((34, (56 / 3) ** 0.5))
    assert priors.sizes[0] == pytest.approx((0.9, 1.8, 0.5))
    assert priors.sizes[1] == pytest.approx((3.8, 1.4, 1.7))
    assert priors.shared_depth == pytest.approx((25.2, 128.96**0.5))


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 1, 1], [0, 0, 1]])
def test_a_class_with_too_few_objects_is_named(labels: list[int]):
    depths = torch.tensor([10.0, 10.0, 20.0]) if labels == [0, 0, 1] else torch.tensor([10.0, 20.0, 30.0])
    with pytest.raises(ValueError, match="'Pedestrian'"):
        compute_priors(depths, torch.ones(3, 3), torch.tensor(labels), NAMES)
