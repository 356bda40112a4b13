import math

import torch

from bevkd2.modeling.bev.geometry import (
    bev_reference_points,
    find_visible_pairs,
    pillar_points,
    project_pillars,
)
from tests.modeling.conftest import HEIGHT, WIDTH, camera_matrix

PC_RANGE = (-12.0, -9.0, -5.0, 12.0, 9.0, 3.0)


def test_cells_are_row_major_with_y_down_the_rows():
    points = bev_reference_points((2, 3), torch.device("cpu"))
    expected = [
        [1 / 6, 1 / 4],
        [3 / 6, 1 / 4],
        [5 / 6, 1 / 4],
        [1 / 6, 3 / 4],
        [3 / 6, 3 / 4],
        [5 / 6, 3 / 4],
    ]
    torch.testing.assert_close(points, torch.tensor(expected))


def test_pillar_points_are_in_metres():
    points = pillar_points((3, 4), PC_RANGE, 4, torch.device("cpu"))
    assert points.shape == (12, 4, 3)
    torch.testing.assert_close(points[0, :, 2], torch.tensor([-4.5, -4.5 + 7 / 3, -4.5 + 14 / 3, 2.5]))
    torch.testing.assert_close(points[5, 0, :2], torch.tensor([-3.0, 0.0]))


def project(points: torch.Tensor, padded: tuple[int, int] = (HEIGHT, WIDTH)):
    matrix = camera_matrix(math.pi / 2, focal=60.0, height=1.0)[None, None]
    sizes = torch.tensor([[[float(HEIGHT), float(WIDTH)]]])
    reference, visible = project_pillars(points, matrix, sizes, padded)
    return reference[0, 0], visible[0, 0]


def test_a_point_ahead_projects_where_a_pinhole_says():
    # 6 m ahead (y), 1 m to the right (x), 0.5 m above the camera, which is 1 m above ground.
    points = torch.tensor([[[1.0, 6.0, 1.5]]])
    reference, visible = project(points)
    expected = torch.tensor([(WIDTH / 2 + 60 / 6) / WIDTH, (HEIGHT / 2 - 60 * 0.5 / 6) / HEIGHT])
    torch.testing.assert_close(reference[0, 0], expected)
    assert bool(visible)
    padded, _ = project(points, (64, 128))
    torch.testing.assert_close(padded[0, 0], expected * torch.tensor([WIDTH / 128, HEIGHT / 64]))


def test_visibility_is_strict_and_needs_depth():
    at_edge = 48 / 60 * 6  # projects to u = WIDTH exactly
    points = torch.tensor([[[at_edge, 6.0, 1.0]], [[at_edge - 1e-3, 6.0, 1.0]], [[0.0, -6.0, 1.0]]])
    assert project(points)[1].flatten().tolist() == [False, True, False]


def test_pairs_are_sorted_by_cell_and_complete():
    torch.manual_seed(0)
    visible = torch.rand(2, 3, 7, 4) < 0.15
    reference = torch.rand(2, 3, 7, 4, 2)
    pairs = find_visible_pairs(reference, visible)
    assert torch.equal(pairs.bev_mask, visible.any(-1))
    splits = pairs.row_splits.tolist()
    assert splits[0] == 0
    assert splits[-1] == len(pairs.row_value) == int(pairs.bev_mask.sum())
    for b in range(2):
        for q in range(7):
            rows = slice(splits[b * 7 + q], splits[b * 7 + q + 1])
            cameras = pairs.bev_mask[b, :, q].nonzero()[:, 0]
            assert torch.equal(pairs.row_value[rows], b * 3 + cameras)
            assert torch.equal(pairs.reference_points[rows], reference[b, cameras, q])


def test_projection_ignores_autocast():
    points = torch.rand(5, 4, 3) * 10
    exact = project(points)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(project(points)[0], exact)
