from pathlib import Path

import pytest

from bevkd2.kitti.files import read_frame_list


def test_a_list_that_is_not_there_is_named(tmp_path: Path):
    for path in (tmp_path / "gone.txt", tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"{path} is not a file; expected the list of a split"):
            read_frame_list(path)


def test_frames_keep_their_order(tmp_path: Path):
    path = tmp_path / "val.txt"
    path.write_text("000008\n\n 000002 \r\n000134")
    assert read_frame_list(path) == ("000008", "000002", "000134")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_read_and_another_encoding_named(tmp_path: Path, encoding: str):
    path = tmp_path / "val.txt"
    path.write_text("000008\n000002\n", encoding=encoding)
    if encoding == "utf-8-sig":
        assert read_frame_list(path) == ("000008", "000002")
        return
    with pytest.raises(ValueError, match=rf"{path} is in UTF-16 .*ff fe.*iconv -f UTF-16 -t UTF-8"):
        read_frame_list(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000001\n000002\n000001\n", "line 3: frame 000001 is in line 1 already"),
        ("000001\n000002.png\n", "line 2: '000002.png', expected a frame of six digits"),
        ("\u0660\u0660\u0660\u0660\u0660\u0661\n", "line 1: '.*', expected a frame of six digits"),
        ("\n\n", "lists no frame"),
    ],
)
def test_files_that_are_not_frame_lists_are_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "val.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_frame_list(path)
