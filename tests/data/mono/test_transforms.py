import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bevkd2.data.mono.affine import AffineAugmentation
from bevkd2.data.mono.index import MonoRecord
from bevkd2.data.mono.transforms import fitting_size, flip, view_of, warp
from bevkd2.data.transforms import resize
from bevkd2.structures import CameraBoxes3D, project_boxes, project_points

FILE_SIZE = (94, 311)  # KITTI's shape, at a quarter
P2 = torch.tensor(
    [[180.4, 0.0, 152.4, 11.21], [0.0, 180.4, 43.2, 0.0541], [0.0, 0.0, 1.0, 0.002746], [0, 0, 0, 1]],
    dtype=torch.float64,
)
ALWAYS = AffineAugmentation(prob=1.0)


def around(points):
    return torch.cat([points.amin(dim=-2), points.amax(dim=-2)], dim=-1)


def random_boxes(seed, columns=7):
    rng = np.random.default_rng(seed)
    x, y, z = rng.uniform(-6, 6, 5), rng.uniform(-1, 2, 5), rng.uniform(8, 40, 5)
    size, yaw = rng.uniform(0.4, 4, (5, 3)), rng.uniform(-3.1, 3.1, (5, 1))
    rows = np.column_stack([x, y, z, size, yaw, rng.normal(size=(5, columns - 7))])
    return CameraBoxes3D(torch.from_numpy(rows))


def record_of(boxes):
    """A record whose own image-plane boxes go around the whole projections, also beyond the image."""
    boxes2d = around(project_boxes(boxes, P2)[0])
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return MonoRecord("0", "", *FILE_SIZE, P2.numpy(), boxes, labels, boxes2d)


def dot(u, v, sigma=4.0):
    """A bright spot around the pixel coordinates (u, v) on black."""
    y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in FILE_SIZE), indexing="ij")
    spot = 255 * torch.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma**2))
    return spot.round().to(torch.uint8).expand(3, -1, -1)


def centroid(image):
    weight = image[0].double()
    y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in weight.shape), indexing="ij")
    return torch.stack([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


steps = st.lists(st.sampled_from(["flip", "warp", "augmented warp"]), max_size=4)
sizes = st.sampled_from([FILE_SIZE, (47, 156), (80, 300), (110, 320)])


def run(view, names, seed):
    rng = np.random.default_rng(seed)
    for name in names:
        if name == "flip":
            view = flip(view)
        else:
            view = warp(view, (96, 320), rng, ALWAYS if name == "augmented warp" else None)
    return view


@settings(max_examples=60, deadline=None)
@given(steps, sizes, st.integers(0, 1000), st.sampled_from([7, 9]))
def test_boxes_and_calibration_move_together(names, size, seed, columns):
    """What the new calibration makes of the new boxes is where the old projections went."""
    boxes = random_boxes(seed, columns)
    image = torch.zeros((3, *size), dtype=torch.uint8)
    view = run(view_of(record_of(boxes), image), names, seed)
    to_view = torch.linalg.inv(view.image_to_original)

    def moved(uv):
        return uv @ to_view[:2, :2].T + to_view[:2, 2]

    centers, depths = project_points(boxes.center, P2)
    new_centers, new_depths = project_points(view.boxes.center, view.cam2img)
    torch.testing.assert_close(new_centers, moved(centers), rtol=0, atol=1e-8)
    torch.testing.assert_close(new_depths, depths, rtol=1e-12, atol=0)

    corners = moved(project_boxes(boxes, P2)[0])
    new_corners, _ = project_boxes(view.boxes, view.cam2img)
    distances = torch.cdist(corners, new_corners)  # mirroring swaps a box's sides
    assert distances.amin(dim=1).max() < 1e-6 and distances.amin(dim=2).max() < 1e-6

    torch.testing.assert_close(view.boxes2d, around(new_corners), rtol=0, atol=1e-8)
    torch.testing.assert_close(view.clipped_boxes2d(), view.projected_boxes2d(), rtol=0, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(steps, sizes, st.integers(0, 1000), st.floats(40, 270), st.floats(25, 70))
def test_pixels_move_as_calibration_does(names, size, seed, u, v):
    view = run(view_of(record_of(random_boxes(0)), resize(dot(u, v), size)), names, seed)
    to_view = torch.linalg.inv(view.image_to_original)
    expected = to_view[:2, :2] @ torch.tensor([u, v], dtype=torch.float64) + to_view[:2, 2]
    height, width = view.image_size
    margin = 4 * 4.0 * float(to_view[1, 1])
    assume(margin < expected[0] < width - margin and margin < expected[1] < height - margin)
    assume("augmented warp" not in names[:-1])  # it may have cut the spot
    torch.testing.assert_close(centroid(view.image), expected, rtol=0, atol=0.15)


def test_flip_negates_the_translation_of_p2():
    record = record_of(random_boxes(0, 9))
    view = view_of(record, dot(100, 40))
    flipped = flip(view)
    width = FILE_SIZE[1]
    expected = P2.clone()
    expected[0, 2] = width - P2[0, 2]
    expected[0, 3] = width * P2[2, 3] - P2[0, 3]
    torch.testing.assert_close(flipped.cam2img, expected)
    torch.testing.assert_close(flipped.boxes.center[:, 0], -view.boxes.center[:, 0])
    torch.testing.assert_close(flipped.boxes.velocity[:, 0], -view.boxes.velocity[:, 0])
    assert torch.equal(flipped.image, view.image.flip(-1))
    twice = flip(flipped)
    torch.testing.assert_close(twice.cam2img, view.cam2img)
    torch.testing.assert_close(twice.image_to_original, torch.eye(3, dtype=torch.float64))


def test_resizing_scales_by_the_ratio_of_sizes():
    view = view_of(record_of(random_boxes(0)), torch.zeros((3, 47, 400), dtype=torch.uint8))
    expected = torch.tensor([400 / 311, 47 / 94, 1, 1]).double()[:, None] * P2
    torch.testing.assert_close(view.cam2img, expected, rtol=1e-6, atol=0)
    assert not view.affine_augmented


def test_warp_says_whether_it_is_a_random_window():
    view = view_of(record_of(random_boxes(0)), dot(100, 40))
    rng = np.random.default_rng(0)
    assert warp(view, (96, 320), rng, ALWAYS).affine_augmented
    assert not warp(view, (96, 320), rng, AffineAugmentation(prob=0.0)).affine_augmented
    assert not warp(view, (96, 320)).affine_augmented


def test_unannotated_images_move_too():
    view = view_of(MonoRecord("0", "", *FILE_SIZE, P2.numpy()), dot(100, 40))
    view = warp(flip(view), (96, 320))
    assert view.boxes is None and view.boxes2d is None and view.image.shape == (3, 96, 320)


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((375, 1242), None, (375, 1242)),
        ((375, 1242), (1242, 375), (375, 1242)),
        ((370, 1224), (1242, 375), (375, 1241)),  # as mmcv's rescale_size
        ((376, 1241), (1242, 375), (375, 1238)),
        ((374, 1238), (1242, 375), (375, 1241)),
        ((900, 1600), (800, 800), (450, 800)),
        ((1000, 10), (20, 20), (20, 1)),
    ],
)
def test_sizes_keep_proportions(size, limits, expected):
    assert fitting_size(size, limits) == expected
