import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bevkd2.modeling.bev.attention import SpatialCrossAttention
from bevkd2.modeling.bev.geometry import VisiblePairs, find_visible_pairs
from bevkd2.modeling.bev.layers import LayerOptions
from tests.ops.references import ms_deform_attn_fused_reference

BATCH, CAMERAS, CELLS, HEIGHTS = 2, 3, 12, 2
LEVELS = [(4, 6), (2, 3)]
OPTIONS = LayerOptions(embed_dim=8, num_heads=2, ffn_dim=8, dropout=0.0)


def make_attention() -> SpatialCrossAttention:
    attention = SpatialCrossAttention(OPTIONS, num_levels=2, num_points=4)
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.1)
    torch.nn.init.normal_(attention.attention_weights.weight)
    return attention


def make_pairs() -> tuple[Tensor, Tensor, VisiblePairs]:
    references = torch.rand(BATCH, CAMERAS, CELLS, HEIGHTS, 2)
    visible = torch.rand(BATCH, CAMERAS, CELLS, HEIGHTS) < 0.4
    visible[:, :, 0] = False
    return references, visible, find_visible_pairs(references, visible)


def test_output_is_the_mean_over_the_cameras_that_see_the_cell():
    attention = make_attention()
    references, visible, pairs = make_pairs()
    query, features = torch.randn(BATCH, CELLS, 8), torch.randn(BATCH * CAMERAS, 30, 8)
    wants = frozenset({"spatial_attention", "spatial_offsets"})
    out, costly = attention(query, features, LEVELS, pairs, wants)
    weights = costly["spatial_attention"]

    offsets = attention.sampling_offsets(query).view(BATCH, CELLS, 2, 2, 4, 2)
    logits = attention.attention_weights(query).view(BATCH, CELLS, 2, 2, 4)
    assert torch.equal(costly["spatial_offsets"], offsets)
    values = attention.value_proj(features).view(BATCH, CAMERAS, 30, 2, 4)
    total = torch.zeros(BATCH, CELLS, 8)
    for camera in range(CAMERAS):
        seen, _ = ms_deform_attn_fused_reference(
            values[:, camera], LEVELS, references[:, camera], offsets, logits, reference_mode="pillar"
        )
        total += seen * visible[:, camera].any(-1, keepdim=True)
    mean = total / visible.any(-1).sum(1).clamp(min=1)[..., None]
    torch.testing.assert_close(out, query + attention.output_proj(mean))
    torch.testing.assert_close(out[:, 0], query[:, 0] + attention.output_proj.bias)
    torch.testing.assert_close(weights, logits.flatten(-2).softmax(-1).view_as(weights))


class Operators(TorchDispatchMode):
    """Records the operators that run, and the shapes that they return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...] | None]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen.append((func._opname, tuple(result.shape) if isinstance(result, Tensor) else None))
        return result


@pytest.mark.parametrize("wants", [frozenset(), frozenset({"spatial_attention"})])
def test_a_layer_projects_a_cell_once_and_neither_waits_for_the_device_nor_scatters(wants: frozenset[str]):
    attention = make_attention()
    _, _, pairs = make_pairs()
    query, features = torch.randn(BATCH, CELLS, 8), torch.randn(BATCH * CAMERAS, 30, 8, requires_grad=True)
    with Operators() as operators:
        out, _ = attention(query, features, LEVELS, pairs, wants)
        out.sum().backward()
    names = {name for name, _ in operators.seen}
    waits = {"nonzero", "_local_scalar_dense", "item", "masked_select", "unique"}
    moves = {"index", "index_put", "index_add", "scatter_add", "gather", "index_select", "clone"}
    assert not names & (waits | moves), names
    assert {"ms_deform_attn_ragged", "ms_deform_attn_ragged_backward"} <= names
    projected = [shape for name, shape in operators.seen if name == "addmm"]
    assert sorted(projected) == sorted(
        [(BATCH * CELLS, 32), (BATCH * CELLS, 16), (BATCH * CELLS, 8), (BATCH * CAMERAS * 30, 8)]
    )
