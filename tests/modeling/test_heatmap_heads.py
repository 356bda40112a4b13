import math

import pytest
import torch

from bevkd2.modeling.bev.heatmaps import bev_heatmap_targets, image_heatmap_loss, image_heatmap_targets
from bevkd2.modeling.bev.inputs import BEVTargets
from bevkd2.modeling.heatmaps import HeatmapHead, draw_heatmap, gaussian_radius, heatmap_loss
from bevkd2.structures import Boxes3D
from tests.modeling.conftest import HEIGHT, WIDTH, camera_matrix


def overlap_inside(h: float, w: float, r: float) -> float:
    return (h - 2 * r) * (w - 2 * r) / (h * w)


def test_radius_keeps_the_overlap():
    h, w = torch.tensor([10.0, 30.0]), torch.tensor([20.0, 8.0])
    radius = gaussian_radius(h, w, 0.7)
    for i in range(2):
        inside = overlap_inside(float(h[i]), float(w[i]), float(radius[i]))
        outside = float(h[i] * w[i]) / float((h[i] + 2 * radius[i]) * (w[i] + 2 * radius[i]))
        inter = float((h[i] - radius[i]) * (w[i] - radius[i]))
        shifted = inter / (2 * float(h[i] * w[i]) - inter)
        assert min(inside, outside, shifted) == pytest.approx(0.7, abs=1e-4)


def test_peaks_are_one_and_classes_apart():
    centers = torch.tensor([[3.7, 2.2], [4.2, 2.9], [8.0, 1.0]])
    labels = torch.tensor([0, 0, 1])
    heatmap = draw_heatmap(centers, torch.full((3,), 2.0), labels, 2, (6, 10))
    assert (heatmap == 1).nonzero().tolist() == [[0, 2, 3], [0, 2, 4], [1, 1, 8]]
    assert float(heatmap[0, 2, 2]) == pytest.approx(math.exp(-1 / (2 * (5 / 6) ** 2)))
    assert draw_heatmap(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0).long(), 2, (6, 10)).sum() == 0


def test_bev_targets_are_row_y_column_x():
    tensor = torch.zeros(2, 9)
    tensor[:, 3:6] = 2.0
    tensor[0, :2] = torch.tensor([5.5, -7.5])  # right, behind
    tensor[1, :2] = torch.tensor([11.0, 0.0])  # outside
    heatmap, count = bev_heatmap_targets(
        Boxes3D(tensor), torch.tensor([2, 1]), 3, (16, 20), (-10.0, -8.0, -5.0, 10.0, 8.0, 3.0)
    )
    assert count == 1
    assert (heatmap == 1).nonzero().tolist() == [[2, 0, 15]]


def test_image_targets_are_where_the_camera_sees_the_centre():
    tensor = torch.zeros(2, 9)
    tensor[:, 3:6] = 1.0
    tensor[0, :3] = torch.tensor([1.0, 6.0, 1.0])
    tensor[1, :3] = torch.tensor([1.0, -6.0, 1.0])  # behind the camera
    size = torch.tensor([float(HEIGHT), float(WIDTH)])
    heatmap, count = image_heatmap_targets(
        Boxes3D(tensor),
        torch.tensor([1, 0]),
        torch.stack([camera_matrix(math.pi / 2), camera_matrix(-math.pi / 2)]),
        size.expand(2, 2),
        2,
        (15, 24),
        4,
    )
    assert count == 2
    row, column = HEIGHT // 2 // 4, int(WIDTH / 2 + 10) // 4
    mirrored = int(WIDTH / 2 - 10) // 4
    assert (heatmap == 1).nonzero().tolist() == [[0, 1, row, column], [1, 0, row, mirrored]]


def test_image_targets_are_exact_under_autocast():
    tensor = torch.zeros(1, 9)
    tensor[:, 3:6] = 1.0
    tensor[0, :3] = torch.tensor([3.03, 6.1, 1.27])  # a projection in bfloat16 misses by half a pixel
    targets = BEVTargets(
        boxes=[Boxes3D(tensor)],
        labels=[torch.tensor([0])],
        codes=[],
        lidar2img=camera_matrix(math.pi / 2)[None, None],
        image_sizes=torch.tensor([[[float(HEIGHT), float(WIDTH)]]]),
    )
    logits = torch.randn(1, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    expected = image_heatmap_loss(logits, targets, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(image_heatmap_loss(logits, targets, 1), expected)


def test_loss_falls_to_zero_at_the_truth_and_counts_once():
    target = draw_heatmap(torch.tensor([[2.0, 2.0]]), torch.tensor([1.0]), torch.tensor([0]), 1, (5, 5))[None]
    right = torch.where(target == 1, 20.0, -20.0)
    assert float(heatmap_loss(right, target, 1)) == pytest.approx(0, abs=1e-6)
    flat = torch.zeros(1, 1, 5, 5)
    assert float(heatmap_loss(flat, target, 2)) == pytest.approx(float(heatmap_loss(flat, target, 1)) / 2)
    assert float(heatmap_loss(flat, torch.zeros_like(target), 0)) == pytest.approx(
        25 * 0.693147 / 4, rel=1e-5
    )


def test_head_starts_at_a_low_score():
    head = HeatmapHead(8, 3)
    score = head(torch.randn(2, 8, 6, 7) * 0.01).detach().sigmoid()
    assert score.shape == (2, 3, 6, 7)
    assert float(score.mean()) == pytest.approx(0.1, abs=0.03)
