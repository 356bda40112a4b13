import pytest
import torch

from bevkd2.modeling.bev import attention as attention_module
from bevkd2.modeling.bev.attention import TemporalSelfAttention
from bevkd2.modeling.bev.geometry import History, bev_reference_points
from bevkd2.modeling.bev.layers import LayerOptions

SHAPE = (3, 4)
CELLS = SHAPE[0] * SHAPE[1]
OPTIONS = LayerOptions(embed_dim=8, num_heads=2, ffn_dim=8, dropout=0.0)
WANTS = frozenset({"temporal_attention"})


def make_attention() -> TemporalSelfAttention:
    """One point, no offset and no projection: every queue gives the cell at the reference."""
    attention = TemporalSelfAttention(OPTIONS, num_points=1, bev_shape=SHAPE)
    with torch.no_grad():
        attention.sampling_offsets.bias.zero_()
        for projection in (attention.value_proj, attention.output_proj):
            projection.weight.copy_(torch.eye(8))
    return attention


def make_history(batch: int, exists: list[bool]) -> History:
    references = bev_reference_points(SHAPE, torch.device("cpu")).expand(batch, 2, CELLS, 2).clone()
    queue = torch.randn(batch, 2, CELLS, 8) if any(exists) else None
    return History(queue, exists, references)


def test_output_is_the_mean_of_the_two_queues_at_their_references():
    attention, history = make_attention(), make_history(1, [True])
    history.reference_points[:, 0, :, 0] += 1 / SHAPE[1]  # the previous grid is read a column to the right
    query = torch.randn(1, CELLS, 8)
    out, _ = attention(query, torch.randn(CELLS, 8), history)
    previous = torch.zeros(3, 4, 8)
    previous[:, :3] = history.queue[0, 0].view(3, 4, 8)[:, 1:]
    expected = query[0] + (previous.flatten(0, 1) + history.queue[0, 1]) / 2
    torch.testing.assert_close(out[0], expected)


def test_without_history_both_queues_are_the_running_query():
    attention = make_attention()
    query = torch.randn(2, CELLS, 8)
    for exists in ([False, False], [False, True]):
        out, _ = attention(query, torch.randn(CELLS, 8), make_history(2, exists))
        torch.testing.assert_close(out[0], 2 * query[0])


@pytest.mark.parametrize("part", ["previous", "query", "position"])
def test_weights_depend_on_the_previous_grid_and_the_located_query(part: str):
    attention, history = make_attention(), make_history(1, [True])
    attention.num_points = 4
    attention.sampling_offsets = torch.nn.Linear(16, 2 * 2 * 4 * 2)
    attention.attention_weights = torch.nn.Linear(16, 2 * 2 * 4)
    query, position = torch.randn(1, CELLS, 8), torch.randn(CELLS, 8)
    before = attention(query, position, history, WANTS)[1]["temporal_attention"]
    assert before.shape == (1, CELLS, 2, 2, 1, 4)
    torch.testing.assert_close(before.sum((-1, -2)), torch.ones(1, CELLS, 2, 2))
    context = torch.cat([history.queue[:, 0], query + position], -1)
    logits = attention.attention_weights(context).view(1, CELLS, 2, 2, 1, 4)
    torch.testing.assert_close(before, logits.softmax(-1))  # heads, queues, points in this order
    history.queue[:, 1] += 1.0  # the initial queries are sampled, not asked
    same = attention(query, position, history, WANTS)[1]["temporal_attention"]
    assert torch.equal(same, before)
    {"previous": history.queue[:, 0], "query": query, "position": position}[part].add_(1.0)
    after = attention(query, position, history, WANTS)[1]["temporal_attention"]
    assert not torch.allclose(after, before)


def test_queues_are_averaged_by_the_op(monkeypatch: pytest.MonkeyPatch):
    shapes = []
    op = attention_module.ms_deform_attn_fused

    def record(*args, **kwargs):
        output, weights = op(*args, **kwargs)
        shapes.append(tuple(output.shape))
        return output, weights

    monkeypatch.setattr(attention_module, "ms_deform_attn_fused", record)
    make_attention()(torch.randn(3, CELLS, 8), torch.randn(CELLS, 8), make_history(3, [True] * 3))
    assert shapes == [(3, CELLS, 8)]
