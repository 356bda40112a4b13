import math

import pytest
import torch

from bevkd2.modeling.mono.smoke.targets import assign_cells, heatmap_targets, objects_of
from tests.modeling.mono.scenes import FAR, IMAGE_SIZE, LARGE, NEAR, annotations

SHAPE = (IMAGE_SIZE[0] // 4, IMAGE_SIZE[1] // 4)
OUTSIDE = [-20.0, *NEAR[1:]]


def heatmaps(targets: object) -> torch.Tensor:
    objects = objects_of(targets, 4)
    return heatmap_targets(objects, len(targets.boxes), 3, SHAPE, 4, 0.7)


def test_cells_are_those_of_the_projected_centres():
    targets = annotations([[NEAR, FAR], [LARGE]], columns=7)
    objects = objects_of(targets, 4)
    assert objects.rows.tolist() == [0, 0, 1]
    assert objects.indices.tolist() == [0, 1, 0]
    centers = torch.cat(targets.centers2d)
    assert ((objects.cells * 4 <= centers) & (centers < objects.cells * 4 + 4)).all()
    assert torch.equal(objects.boxes.tensor, torch.cat([b.tensor for b in targets.boxes]))


def test_an_object_with_its_centre_outside_gives_no_targets():
    targets = annotations([[OUTSIDE, NEAR]], columns=7)
    objects = objects_of(targets, 4)
    assert objects.indices.tolist() == [1]
    assert objects.labels.tolist() == [1]
    assert not heatmaps(annotations([[OUTSIDE]])).any()
    assert (assign_cells(objects, 1, SHAPE) == 0).sum() == 0


def test_velocities_are_left_out():
    assert objects_of(annotations([[NEAR]], columns=9), 4).boxes.tensor.shape == (1, 7)


def test_heat_map_is_1_at_centres_and_0_beyond_the_radius():
    targets = annotations([[NEAR, FAR], []], columns=7)
    targets.boxes2d[0][0] = torch.tensor([0.0, 0.0, 96.0, 60.0])
    objects = objects_of(targets, 4)
    heatmap = heatmaps(targets)
    x, y = objects.cells[0].tolist()
    assert (heatmap == 1).sum() == 2
    # Both corners of 24 x 15 cells may move inwards by 1.5 cells for an overlap of 0.7; the radius is 1.
    row = heatmap[0, 0, y, x - 2 : x + 3]
    torch.testing.assert_close(row, torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]) * math.exp(-2) + (row == 1))
    assert not heatmap[1].any()
    assert not heatmap[0, 2].any()


def test_a_tiny_object_is_one_cell():
    targets = annotations([[FAR]], columns=7)
    targets.boxes2d[0][:, 2:] = targets.boxes2d[0][:, :2] + 1
    assert heatmaps(targets).sum() == 1


def test_the_nearest_object_has_the_cell():
    behind = [2 * NEAR[0] - 0.01, 2 * NEAR[1], 2 * NEAR[2], *NEAR[3:]]
    for order in ([NEAR, behind], [behind, NEAR]):
        targets = annotations([order], columns=7)
        objects = objects_of(targets, 4)
        assert len({tuple(cell) for cell in objects.cells.tolist()}) == 1
        assigned = assign_cells(objects, 1, SHAPE)
        assert assigned.shape == (1, SHAPE[0] * SHAPE[1])
        assert assigned[assigned >= 0].tolist() == [order.index(NEAR)]
        x, y = objects.cells[0].tolist()
        assert assigned[0, y * SHAPE[1] + x] == order.index(NEAR)


@pytest.mark.parametrize("row", [0, 1])
def test_images_of_a_batch_are_independent(row: int):
    images = [[NEAR, OUTSIDE, FAR], [LARGE]]
    both, alone = annotations(images, columns=7), annotations([images[row]], columns=7)
    assert torch.equal(heatmaps(both)[row], heatmaps(alone)[0])
    assigned = [assign_cells(objects_of(t, 4), len(t.boxes), SHAPE) for t in (both, alone)]
    assert torch.equal(assigned[0][row], assigned[1][0])


def test_augmented_images_are_marked():
    targets = annotations([[NEAR], [LARGE, FAR]], columns=7)
    targets.affine_augmented[1] = True
    assert objects_of(targets, 4).box_loss_mask.tolist() == [True, False, False]
