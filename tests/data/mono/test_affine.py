from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bevkd2.data.mono.affine import AffineAugmentation, affine_warp, window_affine


def centroid(image: torch.Tensor) -> torch.Tensor:
    """(x, y) of the light in an image, pixel (i, j) at (j + 0.5, i + 0.5)."""
    weight = image.double().mean(0)
    y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in weight.shape), indexing="ij")
    return torch.stack([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), x=st.integers(40, 79), y=st.integers(20, 34))
def test_affine_maps_input_pixels_to_output_pixels(seed: int, x: int, y: int):
    image = torch.zeros(3, 60, 120, dtype=torch.uint8)
    image[:, y : y + 4, x : x + 4] = 255
    always = AffineAugmentation(prob=1.0, shift=0.1)
    warped, affine, augmented = affine_warp(image, (96, 200), np.random.default_rng(seed), always)
    assert augmented
    expected = affine[:2, :2].double() @ centroid(image) + affine[:2, 2]
    inside = ((expected > 10) & (expected < torch.tensor([190, 86]))).all()
    if inside:
        torch.testing.assert_close(centroid(warped), expected, atol=0.15, rtol=0)


def test_without_augmentation_the_whole_width_fills_the_input():
    image = torch.randint(0, 256, (3, 37, 124), dtype=torch.uint8)
    warped, affine, augmented = affine_warp(image, (38, 128))
    assert warped.shape == (3, 38, 128)
    assert warped.dtype == torch.uint8
    assert not augmented
    corners = affine @ torch.tensor([[0.0, 124.0], [18.5, 18.5], [1.0, 1.0]])
    torch.testing.assert_close(corners[:2], torch.tensor([[0.0, 128.0], [19.0, 19.0]]))


def test_same_size_is_the_identity():
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    warped, affine, _ = affine_warp(image, (20, 30))
    assert torch.equal(warped, image)
    assert torch.equal(affine, torch.eye(3))


def test_how_often_and_how_far():
    augmentation, rng = AffineAugmentation(), np.random.default_rng(0)
    windows = [augmentation.window((100, 200), rng) for _ in range(4000)]
    drawn = [(center, width) for center, width, augmented in windows if augmented]
    assert 0.27 < len(drawn) / len(windows) < 0.33
    assert {round(center[0]) for center, _ in drawn} == {60, 80, 100, 120, 140}
    assert {round(center[1]) for center, _ in drawn} == {30, 40, 50, 60, 70}
    assert {round(width) for _, width in drawn} == {120, 140, 160, 180, 200, 220, 240, 260, 280}
    assert all(center == (100, 50) and width == 200 for center, width, augmented in windows if not augmented)


def test_bad_settings_are_errors():
    with pytest.raises(ValueError, match="prob in 0"):
        AffineAugmentation(prob=2.0)
    with pytest.raises(ValueError, match="needs rng"):
        affine_warp(torch.zeros(3, 4, 4, dtype=torch.uint8), (4, 4), None, AffineAugmentation())


@pytest.mark.parametrize("case", ["small_a", "small_b_affineaug"])
def test_affine_is_the_published_one(shared_dir: Path, case: str):
    arrays = np.load(shared_dir / "golden" / "mono" / "heads" / f"smoke_{case}_inputs.npz")
    for image in ("img0", "img1"):
        center, size = arrays[f"{image}/aug_center"], arrays[f"{image}/aug_size"]
        ours = window_affine(center.tolist(), float(size[0]), tuple(arrays["pad_shape"].tolist()))
        np.testing.assert_allclose(ours, arrays[f"{image}/trans_affine"], atol=1e-5)
