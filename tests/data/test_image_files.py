import logging
import os
import re
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image, encode_png

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
        read(path, IMAGE_SIZE if kind == "jpg" else (11, 29))
    assert re.search(
        r"(torchvision|Pillow) says: [A-Z]|begin as an image does|last part is", str(error.value)
    )


@pytest.mark.parametrize("checked", [True, False])
def test_damaged_picture_data_of_a_png_are_named(tmp_path, pixels, checked):
    """Torchvision's decoder ends the process on them."""
    path, data = tmp_path / "a.png", bytearray(png_bytes(pixels))
    at = data.index(b"IDAT")
    (length,) = struct.unpack_from(">I", data, at - 4)
    data[at + 4 + length // 2] ^= 1
    if not checked:
        struct.pack_into(">I", data, at + 4 + length, zlib.crc32(data[at : at + 4 + length]))
    path.write_bytes(data)
    message = r"The checksum of its part b'IDAT' at byte 33 is wrong" if checked else "Pillow says: "
    with pytest.raises(ValueError, match=rf"a\.png of sample 'the-token' cannot be decoded .*{message}"):
        read(path, (11, 29))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_kind_of_png_is_rgb_as_torchvision_decodes_it(tmp_path, pixels, mode):
    path = tmp_path / "a.png"
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert(mode).save(path)
    expected = decode_image(str(path), mode=ImageReadMode.RGB)
    assert torch.equal(read(path, (11, 29)), expected)


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_no_memory_is_taken_for_a_size_that_is_not_the_datasets(tmp_path, pixels, kind, monkeypatch):
    """A few bytes may state 65,535 x 65,535 pixels, for which a decoder asks for 13 GB."""
    path = tmp_path / f"bomb.{kind}"
    if kind == "jpg":
        data = image_bytes(0)
        at = data.index(b"\xff\xc0") + 5
        path.write_bytes(data[:at] + b"\xff" * 4 + data[at + 4 :])
    else:
        data = png_bytes(pixels)
        header = b"IHDR" + struct.pack(">II", 65_535, 65_535) + data[24:29]
        path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    monkeypatch.setattr("bevkd2.data.image_files.decode_image", None)
    with pytest.raises(ValueError, match=rf"bomb\.{kind} of sample 'the-token' .*(65535|4294836225 pixels)"):
        read(path)


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


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, make):
    make(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is a folder, a pipe or a device, expected a file"):
        png_size(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png of sample 's' is a folder, a pipe or a device"):
        read_image(tmp_path / "a.png", "sample 's'", (8, 8), "sample_data")


def write_jpeg(path, size, quality=95):
    """Writes smooth random pixels: what a camera's lens lets through."""
    noise = torch.rand(1, 3, size[0] // 16 + 1, size[1] // 16 + 1, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, size=size, mode="bicubic")[0].clamp(0, 1)
    Image.fromarray((255 * smooth).byte().permute(1, 2, 0).contiguous().numpy()).save(path, quality=quality)


@pytest.mark.parametrize(("size", "divisor"), [((64, 96), 2), ((64, 96), 4), ((66, 98), 2)])
def test_a_jpeg_that_is_read_smaller_shows_the_same(tmp_path, size, divisor):
    path = tmp_path / "a.jpg"
    write_jpeg(path, size)
    needed = (size[0] // divisor, size[1] // divisor)
    reduced = read_image(path, "sample 'a'", size, "sample_data.json", needed)
    assert reduced.shape == (3, *needed) and reduced.dtype is torch.uint8
    mean = torch.nn.functional.avg_pool2d(read(path, size).float(), divisor)
    error = (reduced - mean).abs()
    assert error.mean() < 1.5 and error.max() < 12  # of 255 grey levels; 0.5 on average in nuScenes' frames
    assert (reduced[..., 1:] - mean[..., :-1]).abs().mean() > 4 * error.mean()  # not shifted


@pytest.mark.parametrize(
    ("size", "needed"),
    [((64, 96), (33, 48)), ((64, 96), (64, 96)), ((64, 96), (128, 192)), ((65, 96), (32, 48))],
)
def test_a_jpeg_that_does_not_divide_is_decoded_whole(tmp_path, size, needed):
    path = tmp_path / "a.jpg"
    write_jpeg(path, size)
    assert torch.equal(read_image(path, "sample 'a'", size, "sample_data.json", needed), read(path, size))


def test_a_png_is_never_reduced(tmp_path, pixels):
    path = tmp_path / "a.png"
    path.write_bytes(png_bytes(pixels))
    assert torch.equal(read_image(path, "sample 'a'", (11, 29), "sample_data.json", (5, 14)), pixels)


def test_a_damaged_jpeg_is_named_when_it_is_reduced(tmp_path):
    path = tmp_path / "a.jpg"
    write_jpeg(path, (64, 96))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"image .*a\.jpg of sample 'a' cannot be decoded \(700 bytes\)"):
        read_image(path, "sample 'a'", (64, 96), "sample_data.json", (32, 48))
