"""What the losses over student and teacher refuse, whichever loss it is."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from bevkd2.ops import DepthWeights, bev_response_l2, channel_wise_kl, logit_distance, prediction_loss

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "channel_wise_kl": channel_wise_kl,
    "bev_response_l2": lambda s, t: bev_response_l2(s, t, reduction="norm"),
    "logit_distance": lambda s, t: logit_distance(s[:, 0], t[:, 0], distance="l2"),
}
each = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@each
def test_integers_and_other_devices_are_named(loss: Callable) -> None:
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


def test_depths_on_another_device_are_named() -> None:
    logits, objects = torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.bool)
    depths = DepthWeights(torch.zeros(1, 3), torch.ones((), device="meta"))
    with pytest.raises(ValueError, match="max_depth is on meta, student on cpu"):
        prediction_loss(logits, logits, objects, depths, distance="l2")
