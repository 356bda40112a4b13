"""Content mask, perspective matrix and occlusion factor."""

import math

import pytest
import torch

from bevkd2.ops import content_mask, occlusion_factor, perspective_matrix

PAPER = {"amplitude": 0.3, "sigma": (0.7, 0.7), "center": (0.5, 0.5)}


def test_matrix_is_equation_3():
    matrix = perspective_matrix(torch.tensor([[100.0, 300.0]]), (101, 301), 1, **PAPER)[0]
    assert matrix.max().item() == pytest.approx(0.3, rel=1e-4)
    assert divmod(int(matrix.argmax()), 301) in {(49, 149), (49, 150), (50, 149), (50, 150)}
    # The corner lies half a cell inside: 0.3 exp(-0.5 / 0.49), no factor 2.
    assert matrix[0, 0].item() == pytest.approx(0.3 * math.exp(-0.5 / 0.49), rel=0.03)
    by_hand = 0.3 * math.exp(-(((20.5 / 300) - 0.5) ** 2) / 0.49 - ((70.5 / 100) - 0.5) ** 2 / 0.49)
    assert matrix[70, 20].item() == pytest.approx(by_hand, rel=1e-5)


def test_matrix_is_the_same_on_every_level_and_ignores_padding():
    sizes = torch.tensor([[96.0, 320.0], [64.0, 320.0]])
    fine = perspective_matrix(sizes, (24, 80), 4, **PAPER)
    coarse = perspective_matrix(sizes, (12, 40), 8, **PAPER)
    torch.testing.assert_close(
        fine.unflatten(1, (12, 2)).unflatten(3, (40, 2)).mean((2, 4)), coarse, rtol=1e-2, atol=0
    )
    padded = perspective_matrix(sizes[1:], (32, 96), 4, **PAPER)
    torch.testing.assert_close(padded[:, :24, :80], fine[1:])


def test_center_and_sigma_move_the_maximum_and_the_decay():
    matrix = perspective_matrix(
        torch.tensor([[40.0, 40.0]]), (40, 40), 1, amplitude=1.0, sigma=(0.2, 5.0), center=(0.25, 0.75)
    )[0]
    row, column = divmod(int(matrix.argmax()), 40)
    assert row in (29, 30) and column in (9, 10)
    assert matrix[0, column] > 0.95 > 0.1 > matrix[row, 39]


def test_content_mask_excludes_the_padding():
    mask = content_mask(torch.tensor([[10.0, 20.0], [16.0, 32.0]]), (4, 8), 4)
    assert mask[0].sum(1).tolist() == [5, 5, 5, 0] and bool(mask[1].all())


def test_near_objects_lower_the_factor_in_their_boxes_and_far_ones_do_not():
    boxes = [
        torch.tensor([[8.0, 0.0, 24.0, 16.0], [16.0, 0.0, 32.0, 8.0], [0.0, 24.0, 8.0, 32.0]]),
        torch.zeros(0, 4),
    ]
    depths = [torch.tensor([5.0, 10.0, 60.0]), torch.zeros(0)]
    factor = occlusion_factor(boxes, depths, (8, 8), 4, near_depth=20.0)
    assert factor[0, 0].tolist() == [1, 1, 0.25, 0.25, 0.25, 0.25, 0.5, 0.5]  # the nearest object counts
    assert factor[0, 3].tolist() == [1, 1, 0.25, 0.25, 0.25, 0.25, 1, 1]
    assert bool((factor[0, 4:] == 1).all()) and bool((factor[1] == 1).all())
