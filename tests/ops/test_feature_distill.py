"""The perspective matrix, the occlusion rule and weighted feature imitation."""

import math

import pytest
import torch

from bevkd2.ops import content_mask, feature_l2, occlusion_factor, perspective_matrix

PAPER = {"amplitude": 0.3, "sigma": (0.7, 0.7), "center": (0.5, 0.5)}


def test_matrix_falls_from_the_centre_to_the_corners_as_equation_3_says():
    matrix = perspective_matrix(torch.tensor([[100.0, 300.0]]), (101, 301), 1, **PAPER)[0]
    assert matrix.max().item() == pytest.approx(0.3, rel=1e-4)
    assert divmod(int(matrix.argmax()), 301) in {(49, 149), (49, 150), (50, 149), (50, 150)}
    # The corner lies half a cell inside: 0.3 exp(-0.5 / 0.49), no factor 2.
    assert matrix[0, 0].item() == pytest.approx(0.3 * math.exp(-0.5 / 0.49), rel=0.03)
    by_hand = 0.3 * math.exp(-(((20.5 / 300) - 0.5) ** 2) / 0.49 - ((70.5 / 100) - 0.5) ** 2 / 0.49)
    assert matrix[70, 20].item() == pytest.approx(by_hand, rel=1e-5)


def test_matrix_is_the_same_function_on_every_level_and_ignores_padding():
    sizes = torch.tensor([[96.0, 320.0], [64.0, 320.0]])
    fine = perspective_matrix(sizes, (24, 80), 4, **PAPER)
    coarse = perspective_matrix(sizes, (12, 40), 8, **PAPER)
    torch.testing.assert_close(
        fine.unflatten(1, (12, 2)).unflatten(3, (40, 2)).mean((2, 4)), coarse, rtol=1e-2, atol=0
    )
    padded = perspective_matrix(sizes[1:], (32, 96), 4, **PAPER)
    torch.testing.assert_close(padded[:, :24, :80], fine[1:])


def test_the_farthest_point_and_the_decay_can_be_moved():
    matrix = perspective_matrix(
        torch.tensor([[40.0, 40.0]]), (40, 40), 1, amplitude=1.0, sigma=(0.2, 5.0), center=(0.25, 0.75)
    )[0]
    row, column = divmod(int(matrix.argmax()), 40)
    assert row in (29, 30) and column in (9, 10)
    assert matrix[0, column] > 0.95 > 0.1 > matrix[row, 39]


def test_content_mask_leaves_the_padding_out():
    mask = content_mask(torch.tensor([[10.0, 20.0], [16.0, 32.0]]), (4, 8), 4)
    assert mask[0].sum(1).tolist() == [5, 5, 5, 0] and bool(mask[1].all())


def test_near_objects_lower_the_weight_where_they_stand_and_far_ones_do_not():
    boxes = [
        torch.tensor([[8.0, 0.0, 24.0, 16.0], [16.0, 0.0, 32.0, 8.0], [0.0, 24.0, 8.0, 32.0]]),
        torch.zeros(0, 4),
    ]
    depths = [torch.tensor([5.0, 10.0, 60.0]), torch.zeros(0)]
    factor = occlusion_factor(boxes, depths, (8, 8), 4, near_depth=20.0)
    assert factor[0, 0].tolist() == [1, 1, 0.25, 0.25, 0.25, 0.25, 0.5, 0.5]  # the nearest object counts
    assert factor[0, 3].tolist() == [1, 1, 0.25, 0.25, 0.25, 0.25, 1, 1]
    assert bool((factor[0, 4:] == 1).all()) and bool((factor[1] == 1).all())


def test_feature_distance_is_equation_4():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(2, 3, 4, 5, generator=generator),
        torch.randn(2, 3, 4, 5, generator=generator),
    )
    weights = torch.rand(2, 4, 5, generator=generator)
    expected = (
        sum(
            sum(
                weights[b, y, x].item() * (student[b, c, y, x] - teacher[b, c, y, x]).item() ** 2
                for c in range(3)
                for y in range(4)
                for x in range(5)
            )
            / (4 * 5 * 3)
            for b in range(2)
        )
        / 2
    )
    assert feature_l2(student, teacher, weights).item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(feature_l2(student, teacher), (student - teacher).square().mean())


def test_what_weighs_nothing_may_be_nan_and_gets_no_gradient():
    student = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    teacher[..., 2] = float("nan")
    weights = torch.ones(1, 3, 3, dtype=torch.float64)
    weights[..., 2] = 0
    assert torch.autograd.gradcheck(lambda s: feature_l2(s, teacher, weights, torch.tensor([6])), student)
    feature_l2(student, teacher, weights).backward()
    assert bool((student.grad[..., 2] == 0).all()) and bool((student.grad[..., :2] != 0).all())


def test_half_precision_is_computed_in_float32():
    student, teacher = torch.full((1, 1, 64, 64), 300.0).half(), torch.zeros(1, 1, 64, 64)
    loss = feature_l2(student, teacher)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(90_000)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 3\), teacher \(1, 4, 3, 3\)"):
        feature_l2(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3))
    with pytest.raises(ValueError, match=r"weights of level 0 are \(3, 3\)"):
        feature_l2(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3), torch.zeros(3, 3))
