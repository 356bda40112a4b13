import colorsys

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bevkd2.data.transforms import PhotometricDistortion, _change_colours, resize, scaled_size


def test_published_sizes():
    assert scaled_size((900, 1600), 0.5) == (450, 800)
    assert scaled_size((900, 1600), 0.8) == (720, 1280)
    assert scaled_size((900, 1600), 1.0) == (900, 1600)


def test_resize_keeps_continuous_coordinates():
    """A linear ramp in continuous coordinates stays the same ramp, away from the border."""
    x = (torch.arange(64) + 0.5) * 4  # 4 grey levels a pixel of the original
    image = x.round().to(torch.uint8).expand(3, 32, 64)
    half = resize(image, (16, 32))
    expected = (torch.arange(32) + 0.5) * 2 * 4
    assert half.shape == (3, 16, 32)
    assert (half[0, 3, 1:-1].float() - expected[1:-1]).abs().max() <= 1
    assert resize(image, (32, 64)) is image


@given(
    rgb=st.tuples(*[st.floats(0, 255)] * 3),
    saturation=st.floats(0.5, 1.0),
    hue=st.floats(-18, 18).filter(bool),
)
@settings(max_examples=60, deadline=None)
def test_colours_equal_colorsys(rgb, saturation, hue):
    image = torch.tensor(rgb, dtype=torch.float64).view(3, 1, 1)
    ours = _change_colours(image, saturation, hue).flatten()
    h, s, v = colorsys.rgb_to_hsv(*(channel / 255 for channel in rgb))
    expected = colorsys.hsv_to_rgb((h + hue / 360) % 1, s * saturation, v)
    assert np.abs(ours.numpy() - 255 * np.array(expected)).max() < 1e-3


def test_saturation_alone_is_the_same_formula():
    image = torch.rand((3, 4, 5), dtype=torch.float64) * 255
    torch.testing.assert_close(
        _change_colours(image, 0.7, 0.0), _change_colours(image, 0.7, 1e-12), atol=1e-6, rtol=0
    )


def test_distortion_is_reproducible_and_within_bounds():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 8, 9), dtype=np.uint8))
    distort = PhotometricDistortion()
    outputs = [distort(image, np.random.default_rng(seed)) for seed in range(40)]
    again = [distort(image, np.random.default_rng(seed)) for seed in range(40)]
    assert all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True))
    assert all(out.dtype is torch.uint8 and out.shape == image.shape for out in outputs)
    assert len({bytes(out.numpy()) for out in outputs}) > 30


def test_distortion_does_not_change_its_input():
    image = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    for seed in range(5):
        PhotometricDistortion()(image, np.random.default_rng(seed))
    assert (image == 100).all()


def test_grey_images_show_the_published_strengths():
    """Grey has no colour: brightness and contrast alone move it, to between 68 / 2 and 1.5 * 132."""
    image = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    values = {int(PhotometricDistortion()(image, np.random.default_rng(s))[0, 0, 0]) for s in range(400)}
    assert min(values) >= 34 and max(values) <= 198
    assert min(values) < 50 and max(values) > 170 and 100 in values
