"""The runtime's suppression equals the op's."""

import numpy as np
import pytest
import torch

from bevkd2.ops.box3d import batched_rotated_nms
from bevkd2.ops.box3d import rotated_iou as op_iou
from bevkd2.runtime import rotated_iou, rotated_nms


def boxes(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    places = rng.uniform(-6, 6, (count, 2)) + np.array([40, -200])
    return np.concatenate([places, rng.uniform(0.5, 5, (count, 2)), rng.uniform(-4, 4, (count, 1))], axis=1)


def test_iou_equals_the_op() -> None:
    first, second = boxes(400, 0), boxes(400, 1)
    second[:50] = first[:50]  # identical
    second[50:100, :4] = first[50:100, :4]  # turned about the same centre
    second[100:150, 4] = first[100:150, 4]  # parallel
    second[150:200] = first[150:200] + np.array([1, 0, 0, 0, 0])
    first[150:200, 4] = second[150:200, 4] = 0  # collinear edges
    first[200, 2] = 0.0  # without area
    expected = op_iou(torch.from_numpy(first), torch.from_numpy(second)).diagonal().numpy()
    assert (expected > 0).sum() > 150
    np.testing.assert_allclose(rotated_iou(first, second), expected, atol=1e-9)


@pytest.mark.parametrize("inclusive", [False, True])
def test_suppression_equals_the_op(inclusive: bool) -> None:
    crowd = np.concatenate([boxes(150, 2), boxes(30, 2)])  # duplicates, of equal scores
    scores = np.concatenate([np.linspace(0, 1, 150), np.linspace(0, 1, 150)[:30]]).astype(np.float32)
    labels = np.arange(180) % 3
    kept = rotated_nms(crowd, scores, labels, 0.3, inclusive=inclusive)
    tensors = torch.from_numpy(crowd), torch.from_numpy(scores), torch.from_numpy(labels)
    assert kept.tolist() == batched_rotated_nms(*tensors, 0.3, inclusive).tolist()
    assert 10 < len(kept) < 150


def test_nothing_is_kept_of_nothing() -> None:
    assert len(rotated_nms(np.zeros((0, 5)), np.zeros(0), np.zeros(0, dtype=np.int64), 0.5)) == 0
