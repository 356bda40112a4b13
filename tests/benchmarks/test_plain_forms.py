"""The plain forms compute the same results as the ops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks import plain_forms
from bevkd2.distill.methods import attention, bev_response
from bevkd2.modeling.bev import attention as bev_attention
from bevkd2.ops import (
    attention_l2,
    bev_response_l2,
    ms_deform_attn_fused,
    ms_deform_attn_ragged,
)

LEVELS = [(5, 7), (3, 4)]
HEADS, WIDTH, POINTS = 2, 8, 4


def sampled(*leading: int) -> tuple[Tensor, Tensor]:
    """Offsets and logits."""
    shape = (*leading, HEADS, len(LEVELS), POINTS)
    return torch.randn(*shape, 2), torch.randn(shape)


def values(entries: int) -> Tensor:
    return torch.randn(entries, sum(h * w for h, w in LEVELS), HEADS, WIDTH)


@pytest.mark.parametrize(
    ("mode", "references", "queues"), [("level", 1, 2), ("level", 2, 1), ("pillar", 2, 1)]
)
def test_fused(mode: str, references: int, queues: int) -> None:
    value, points = values(4), torch.rand(4, 6, references, 2)
    options = {"reference_mode": mode, "num_queues": queues, "return_weights": True}
    inputs = (value, LEVELS, points, *sampled(4, 6))
    expected = ms_deform_attn_fused(*inputs, **options)
    for plain, ours in zip(plain_forms.fused(*inputs, **options), expected, strict=True):
        torch.testing.assert_close(plain, ours)


def test_ragged_with_a_cell_that_no_camera_sees() -> None:
    row_splits, row_value = torch.tensor([0, 2, 2, 3, 5]), torch.tensor([0, 2, 1, 0, 1])
    inputs = (values(3), LEVELS, torch.rand(5, 2, 2), *sampled(4), row_splits, row_value)
    expected = ms_deform_attn_ragged(*inputs, return_weights=True)
    found = plain_forms.ragged(*inputs, return_weights=True)
    for plain, ours in zip(found, expected, strict=True):
        torch.testing.assert_close(plain, ours)
    assert not found[0][1].any()


def test_losses() -> None:
    mask = torch.rand(2, 6) > 0.3
    weights = torch.rand(2, 2, 6, HEADS, 2, POINTS).unbind(0)
    torch.testing.assert_close(
        plain_forms.attention_l2(*weights, mask, reduction="norm"),
        attention_l2(*weights, mask, reduction="norm"),
    )
    embeddings = torch.randn(2, 2, 6, 16).unbind(0)
    torch.testing.assert_close(
        plain_forms.bev_response_l2(*embeddings, mask, reduction="norm"),
        bev_response_l2(*embeddings, mask, reduction="norm"),
    )


def test_models_use_reference_ops_only_inside_the_context() -> None:
    replaced = (
        (bev_attention, "ms_deform_attn_fused", plain_forms.fused),
        (bev_attention, "ms_deform_attn_ragged", plain_forms.ragged),
        (attention, "attention_l2", plain_forms.attention_l2),
        (bev_response, "bev_response_l2", plain_forms.bev_response_l2),
    )
    before = [getattr(module, name) for module, name, _ in replaced]
    with plain_forms.plain_ops():
        assert all(getattr(module, name) is plain for module, name, plain in replaced)
    assert [getattr(module, name) for module, name, _ in replaced] == before
