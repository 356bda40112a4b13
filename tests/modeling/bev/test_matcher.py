import itertools

import pytest
import torch

from bevkd2.modeling.bev.criterion import HungarianMatcher, SetWeights, focal_cost

MATCHER = HungarianMatcher(SetWeights(classes=2.0, boxes=0.25, focal_alpha=0.25, focal_gamma=2.0))


def test_focal_cost_by_hand():
    # p = 1/2: -(log .5) * .25 * .25 - -(log .5) * .75 * .25
    cost = focal_cost(torch.zeros(1, 3), torch.tensor([2]), alpha=0.25, gamma=2.0)
    assert float(cost) == pytest.approx(0.693147 * 0.25 * (0.25 - 0.75), abs=1e-6)


def test_assignment_is_optimal_for_every_layer_and_sample():
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 10)
    labels, codes = [torch.tensor([1, 3, 0]), torch.tensor([2])], [torch.randn(3, 10), torch.randn(1, 10)]
    matches = MATCHER(logits, boxes, labels, codes)
    for layer, b in itertools.product(range(2), range(2)):
        queries, objects = matches[layer][b]
        cost = MATCHER.cost(logits[layer, b], boxes[layer, b], labels[b], codes[b])
        best = min(
            sum(float(cost[q, o]) for o, q in enumerate(permutation))
            for permutation in itertools.permutations(range(5), len(labels[b]))
        )
        assert float(cost[queries, objects].sum()) == pytest.approx(best, abs=1e-5)


def test_velocity_does_not_count():
    torch.manual_seed(0)
    logits, boxes, codes = torch.randn(5, 4), torch.randn(5, 10), torch.randn(3, 10)
    labels = torch.tensor([0, 1, 2])
    faster = codes.clone()
    faster[:, 8:] += 100
    assert torch.equal(
        MATCHER.cost(logits, boxes, labels, codes), MATCHER.cost(logits, boxes, labels, faster)
    )


def test_no_objects_and_more_objects_than_queries():
    logits, boxes = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 10)
    labels = [torch.zeros(0, dtype=torch.long), torch.zeros(7, dtype=torch.long)]
    (none, many), *_ = MATCHER(logits, boxes, labels, [torch.zeros(0, 10), torch.randn(7, 10)])
    assert len(none[0]) == len(none[1]) == 0
    assert sorted(many[0].tolist()) == [0, 1, 2]


def test_diverged_predictions_do_not_stop_the_matcher():
    logits = torch.full((1, 1, 3, 4), float("nan"))
    ((queries, _),), *_ = MATCHER(logits, torch.randn(1, 1, 3, 10), [torch.tensor([0])], [torch.randn(1, 10)])
    assert len(queries) == 1
