"""Batches of samples: pixels, geometry and annotations, and the errors of bad samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bevkd2.modeling.mono.inputs import MonoInputs, collate_images, collate_targets
from bevkd2.modeling.pixels import PixelNormalizer
from bevkd2.structures import project_points
from tests.modeling.mono.pgd_model import HEIGHT, WIDTH, make_image

NORMALIZE = PixelNormalizer([1.0, 2.0, 3.0], [2.0, 2.0, 4.0], pixel_format="BGR", size_divisibility=32)


def batch(*samples: dict[str, Any]) -> MonoInputs:
    return collate_images(samples, NORMALIZE, [8, 16])


def test_images_are_normalised_and_padded_and_keep_their_sizes():
    small, large = make_image(0), make_image(1)
    small["image"] = small["image"][:, :40, :50]
    inputs = batch(small, large)
    assert inputs.images.shape == (2, 3, HEIGHT, WIDTH) and inputs.padded_size == (HEIGHT, WIDTH)
    assert inputs.image_sizes.tolist() == [[40, 50], [HEIGHT, WIDTH]]
    assert inputs.images[0, :, 40:].abs().sum() == 0 and inputs.images[0, :, :, 50:].abs().sum() == 0
    red, blue = small["image"][0, 3, 4].item(), small["image"][2, 3, 4].item()
    assert inputs.images[0, 0, 3, 4].item() == pytest.approx((blue - 1) / 2)
    assert inputs.images[0, 2, 3, 4].item() == pytest.approx((red - 3) / 4)


def test_centres_are_projected_with_each_image_s_own_calibration():
    samples = [make_image(0), make_image(1, objects=0), make_image(2, objects=2)]
    samples[2]["cam2img"] = samples[2]["cam2img"] * torch.tensor([[1.1], [0.9], [1.0], [1.0]])
    samples[2]["cam2img"][2, 3] = 0.5
    targets = collate_targets(samples, batch(*samples), 3)
    assert [len(depths) for depths in targets.depths] == [3, 0, 2]
    for row in (0, 2):
        uv, depth = project_points(samples[row]["boxes"].center, samples[row]["cam2img"])
        torch.testing.assert_close(targets.centers2d[row], uv)
        torch.testing.assert_close(targets.depths[row], depth)
    assert targets.max_depth == torch.cat(targets.depths).max()
    assert targets.attributes is None and not targets.affine_augmented.any()


def test_depths_of_locations_follow_the_assignment():
    samples = [make_image(0), make_image(1, objects=0)]
    targets = collate_targets(samples, batch(*samples), 3)
    targets.assigned = torch.tensor([[2, -1, 0], [-1, -1, -1]])
    expected = [targets.depths[0][2].item(), 0.0, targets.depths[0][0].item()]
    assert targets.depth_of_locations().tolist() == [expected, [0.0] * 3]


def test_without_objects_the_largest_depth_divides_by_one():
    samples = [make_image(0, objects=0)]
    assert collate_targets(samples, batch(*samples), 3).max_depth == 1


def behind(sample: dict[str, Any]) -> None:
    sample["boxes"].tensor[1, 2] = -3.0


def unknown_depth(sample: dict[str, Any]) -> None:
    sample["boxes"].tensor[1, 2] = math.nan


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (behind, ValueError, r"image 000007: an object's centre has depth -3\.00 m, expected above 0"),
        (unknown_depth, ValueError, r"image 000007: an object's centre has depth nan m"),
        (lambda s: s["labels"].fill_(3), ValueError, r"image 000007: labels are \[3, 3, 3\].*in 0\.\.2"),
        (lambda s: s.update(labels=s["labels"][:2]), ValueError, "expected as many of each"),
        (lambda s: s.pop("boxes2d"), KeyError, r"image 000007: keys \['boxes2d'\] are missing"),
        (lambda s: s.pop("cam2img"), KeyError, r"image 000007: keys \['cam2img'\] are missing"),
        (lambda s: s.update(cam2img=s["cam2img"][:3]), ValueError, r"cam2img is \(3, 4\), expected \(4, 4\)"),
        (lambda s: s.update(image=s["image"].float()), ValueError, r"float32, expected uint8 \(3, H, W\)"),
    ],
)
def test_invalid_values_are_named(
    spoil: Callable[[dict[str, Any]], Any], error: type[Exception], message: str
) -> None:
    samples = [make_image(0), make_image(7)]
    spoil(samples[1])
    with pytest.raises(error, match=message):
        collate_targets(samples, batch(*samples), 3)
