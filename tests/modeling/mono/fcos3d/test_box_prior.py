"""Depths and sizes from raw numbers."""

import pytest
import torch

from bevkd2.modeling.mono.fcos3d.box_prior import BoxPrior

DEPTHS = [[10.0, 2.0], [20.0, 4.0]]
SIZES = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Raw depth and size of 1 x 2 cells, of which the first is of class 1 and the second of class 0."""
    depth = torch.tensor([0.5, -1.0]).reshape(1, 1, 1, 2)
    size = torch.zeros(1, 3, 1, 2)
    size[0, 2, 0, 1] = 1.0
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0]]).reshape(1, 2, 1, 2)
    return depth, size, logits


def test_without_priors_both_are_exponentials(maps):
    depth, size = BoxPrior(2)(*maps)
    torch.testing.assert_close(depth, maps[0].exp())
    torch.testing.assert_close(size, maps[1].exp())


def test_one_depth_prior_is_for_all_classes(maps):
    depth, _ = BoxPrior(2, DEPTHS[:1])(*maps)
    assert depth.flatten().tolist() == [11.0, 8.0]


def test_priors_of_the_most_likely_class(maps):
    depth, size = BoxPrior(2, DEPTHS, SIZES)(*maps)
    assert depth.flatten().tolist() == [22.0, 8.0]
    assert size[0, :, 0, 0].tolist() == [4.0, 5.0, 6.0]
    torch.testing.assert_close(size[0, :, 0, 1], torch.tensor([1.0, 2.0, 3.0 * torch.e]))


def test_priors_are_no_part_of_the_weights():
    assert not BoxPrior(2, DEPTHS, SIZES).state_dict()


@pytest.mark.parametrize("depths", [DEPTHS * 2, [[1.0]], [[1.0, 2.0, 3.0]]])
def test_wrong_lengths_are_errors(depths):
    with pytest.raises(
        ValueError, match=r"DEPTH_PRIORS has .*; `bevkd2 compute-priors` computes them, \[\] means none"
    ):
        BoxPrior(3, depths)
