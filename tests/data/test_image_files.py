import logging
import re

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import encode_png

from bevkd2.data.image_files import png_size, read_image
from tests.data.nuscenes_fixture import IMAGE_SIZE, image_bytes


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(0, 256, (3, 11, 29), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def png_bytes(pixels) -> bytes:
    return bytes(encode_png(pixels).tolist())


def read(path, size=IMAGE_SIZE):
    return read_image(path, "sample 'the-token'", size, "sample_data.json")


def test_reads_jpeg_as_rgb(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(image_bytes(0))
    image = read(path)
    assert image.shape == (3, *IMAGE_SIZE) and image.dtype is torch.uint8


def test_reads_png_to_the_bit(tmp_path, pixels):
    path = tmp_path / "a.png"
    path.write_bytes(png_bytes(pixels))
    assert torch.equal(read(path, (11, 29)), pixels)
    path.write_bytes(png_bytes(pixels[:1]))
    assert torch.equal(read(path, (11, 29)), pixels[:1].expand(3, -1, -1))


@pytest.mark.parametrize("channels", [1, 3])
def test_of_16_bits_the_high_byte_is_read(tmp_path, pixels, channels):
    path = tmp_path / "a.png"
    wide = pixels[:channels].numpy().transpose(1, 2, 0).astype(np.uint16) * 256 + 201
    path.write_bytes(cv2.imencode(".png", wide[..., ::-1])[1].tobytes())
    image = read(path, (11, 29))
    assert image.dtype is torch.uint8 and torch.equal(image, pixels[:channels].expand(3, -1, -1))


def test_16_bits_that_are_nearly_black_are_told_once(tmp_path, caplog):
    path = tmp_path / "a.png"
    path.write_bytes(cv2.imencode(".png", np.full((11, 29), 0xFFF, dtype=np.uint16))[1].tobytes())
    with caplog.at_level(logging.WARNING):
        assert (read(path, (11, 29)) == 15).all() and (read(path, (11, 29)) == 15).all()
    assert caplog.text.count("a.png has 16 bits a channel") == 1 and "it is 15 at most" in caplog.text


def test_an_animation_is_refused(tmp_path):
    path = tmp_path / "a.png"
    frames = [Image.fromarray(np.full((11, 29), grey, dtype=np.uint8)) for grey in (0, 100, 200)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"a\.png of sample 'the-token' is an animation of 3 pictures"):
        read(path, (11, 29))


@pytest.mark.parametrize("keep", [0, 1, 50, 0.5, -2])
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_truncated_file_is_named_with_its_owner(tmp_path, pixels, kind, keep):
    data = image_bytes(0) if kind == "jpg" else png_bytes(pixels)
    path = tmp_path / f"cut.{kind}"
    if kind == "png" and keep == -2:
        keep = -20  # the last chunk of a PNG is 12 bytes without content
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=rf"cut\.{kind} of sample 'the-token' cannot be decoded") as error:
        read(path)
    assert re.search(r"torchvision says: [A-Z][a-z]+", str(error.value))


def test_missing_file_is_named_with_its_owner(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg of sample 'the-token' does not exist"):
        read(tmp_path / "gone.jpg")


def test_size_must_be_that_of_the_dataset(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(image_bytes(0))
    with pytest.raises(ValueError, match=r"is 36 x 64 .* sample_data\.json says 900 x 1600"):
        read(path, (900, 1600))


def test_size_of_a_png(tmp_path, pixels):
    path = tmp_path / "a.png"
    path.write_bytes(png_bytes(pixels))
    assert png_size(path) == (11, 29)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", image_bytes(0), b"\0" * 100])
def test_size_of_what_is_no_png(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.png \({len(content)} bytes\) does not begin as a PNG does"):
        png_size(path)
