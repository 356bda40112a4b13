"""Arguments that every loss of student and teacher refuses."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from bevkd2.ops import (
    bev_response_l2,
    channel_wise_kl,
    feature_l2,
    logit_distance,
    masked_l2,
    pixel_wise_kl,
    prediction_loss,
    weighted_l2,
    weighted_l2_with_means,
)

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "channel_wise_kl": channel_wise_kl,
    "pixel_wise_kl": pixel_wise_kl,
    "feature_l2": feature_l2,
    "masked_l2": lambda s, t: masked_l2(s, t, reduction="norm"),
    "weighted_l2": lambda s, t: weighted_l2([s], [t], torch.ones(1, 1)),
    "weighted_l2_with_means": lambda s, t: weighted_l2_with_means(s, t, torch.ones(1)).distance,
    "bev_response_l2": lambda s, t: bev_response_l2(s, t, reduction="norm"),
    "logit_distance": lambda s, t: logit_distance(s[:, 0], t[:, 0], distance="l2"),
}
each = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@each
def test_integer_and_device_mismatches_are_refused(loss: Callable) -> None:
    features = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match=re.escape("teacher is torch.int64; expected float64, float32")):
        loss(features, features.long())
    with pytest.raises(ValueError, match="teacher is on meta, student on cpu; move one to the other"):
        loss(features, features.to("meta"))


@each
def test_forward_mode_is_refused(loss: Callable) -> None:
    features = torch.ones(1, 2, 3, 4)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        loss(forward_ad.make_dual(features, features), features)


@pytest.mark.parametrize(
    "loss",
    [
        channel_wise_kl,
        feature_l2,
        lambda s, t: masked_l2(s, t, reduction="sum"),
        lambda s, t: weighted_l2(s, t, torch.ones(len(s), 1)),
    ],
)
def test_numbers_and_dtypes_of_levels_must_match(loss: Callable) -> None:
    features = torch.zeros(1, 2, 3, 4)
    for ours, theirs in (([], []), ([features], [features] * 2), ([features] * 2, [features])):
        message = f"{len(ours)} levels of the student, {len(theirs)} of the teacher; expected as many of each"
        with pytest.raises(ValueError, match=message):
            loss(ours, theirs)
    with pytest.raises(ValueError, match=re.escape("level 1 of the student is torch.bfloat16 on cpu")):
        loss([features, features.bfloat16()], [features] * 2)


def test_masks_and_cells_on_another_device_are_refused() -> None:
    features = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="mask is on meta, student on cpu; move one to the other"):
        masked_l2(features, features, torch.ones(1, 2, device="meta"), reduction="mean")
    with pytest.raises(ValueError, match=re.escape("cells are (1, 1) on meta; expected (levels, B)")):
        feature_l2(features, features, cells=torch.ones(1, device="meta"))


def test_depths_on_another_device_are_refused() -> None:
    logits, objects = torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.bool)
    guidance = torch.ones(1, 3, device="meta")
    with pytest.raises(ValueError, match="guidance is on meta, student on cpu"):
        prediction_loss(logits, logits, objects, guidance, distance="l2")
