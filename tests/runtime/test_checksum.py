"""The checksum at the end of exported files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bevkd2.runtime import seal
from bevkd2.runtime.checksum import CHECKSUM_KEY, check

CONTENT = bytes(range(256)) * 5000


@pytest.fixture
def sealed_file(tmp_path: Path) -> Path:
    path = tmp_path / "student.onnx"
    path.write_bytes(CONTENT)
    seal(path)
    return path


def test_a_sealed_file_passes(sealed_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert sealed_file.read_bytes().startswith(CONTENT)
    check(sealed_file)
    assert caplog.records == []


@pytest.mark.parametrize("place", [0, len(CONTENT) - 1, -1])
def test_a_changed_byte_is_an_error(sealed_file: Path, place: int) -> None:
    content = bytearray(sealed_file.read_bytes())
    content[place] ^= 1
    sealed_file.write_bytes(content)
    with pytest.raises(ValueError, match=r"student\.onnx is damaged, .* bevkd2\.runtime\.seal\(path\)"):
        check(sealed_file)


def test_sealing_again_renews_the_checksum(sealed_file: Path) -> None:
    before = sealed_file.read_bytes()
    seal(sealed_file)
    assert sealed_file.read_bytes() == before
    sealed_file.write_bytes(b"\1" + before[1:])
    seal(sealed_file)
    check(sealed_file)
    assert len(sealed_file.read_bytes()) == len(before)


@pytest.mark.parametrize("content", [b"", CONTENT, CONTENT[:10]])
def test_a_file_without_one_is_said(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "other.onnx").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        check(tmp_path / "other.onnx")
    assert "other.onnx has no checksum at its end" in caplog.text


def test_it_is_an_entry_of_the_metadata(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install bevkd2[export]")
    path, helper = tmp_path / "empty.onnx", onnx.helper
    model = helper.make_model(helper.make_graph([], "empty", [], []))
    helper.set_model_props(model, {"bevkd2": "{}"})
    onnx.save(model, path)
    seal(path)
    check(path)
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert list(entries) == ["bevkd2", CHECKSUM_KEY]
    assert entries[CHECKSUM_KEY].encode() == path.read_bytes()[-64:]
