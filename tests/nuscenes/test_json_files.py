import json
import random

import pytest

from bevkd2.nuscenes import json_files
from bevkd2.nuscenes.json_files import read_elements, read_json

ROWS = [{"token": "ä\n", "list": [1.5, -2e3, {"a": None}], "flag": True}, {"token": "b"}, {}, 12, "x", []]
FLAT = [{"token": f"{i}", "text": "a: b}, {", "list": [1, i]} if i % 5 else {"token": "a"} for i in range(20)]


@pytest.fixture(params=[1, 7, 2**22])
def block(request, monkeypatch):
    monkeypatch.setattr(json_files, "_BLOCK", request.param)


@pytest.mark.parametrize("indent", [None, 0, 3])
@pytest.mark.parametrize("rows", [[], ROWS, ROWS * 9, FLAT, FLAT + ROWS + FLAT])
def test_elements_are_those_of_the_list(tmp_path, block, rows, indent):
    path = tmp_path / "a.json"
    path.write_text(f"\n {json.dumps(rows, indent=indent, ensure_ascii=False)} \r\n")
    assert list(read_elements(path, "mend it")) == rows


@pytest.mark.parametrize(
    "content",
    [
        *(
            "",
            " ",
            "[",
            "[ ",
            "[1",
            "[1,",
            "[1 ",
            "[1, ]",
            "[\n1,\n]",
            "[,]",
            "[1 2]",
            "[1]]",
            "[1] x",
            "[]\n x",
            "[1e",
            "[1.]",
        ),
        *(
            "\ufeff[1]",
            '["a',
            '["\n"]',
            '[{"a": 1, "a": 2}]',
            '[{"a": 1, "b": 2}, {"a": 1, "b": 2, "a": 3}, {"a": 1}]',
            '[{"a": 1}, {"a": ":", "a": 2}, {"a": 1}]',
            "[" * 100_000,
            "{",
            "x",
            '[1,\n  {"a": }]',
            "[tru",
        ),
    ],
)
def test_damage_has_the_message_of_the_whole_file(tmp_path, block, content):
    assert_same_error(tmp_path / "a.json", content.encode())


@pytest.mark.parametrize("rows", [ROWS, FLAT[:6]])
def test_any_damage_has_the_message_of_the_whole_file(tmp_path, block, rows):
    whole = json.dumps(rows, indent=1, ensure_ascii=False).encode()
    rng, refused = random.Random(0), 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(content))
            content[at : at + rng.randint(0, 2)] = rng.choice(
                [b"", b",", b"]", b'"', b"\n", b"\xff", b"{", b"0"]
            )
        refused += assert_same_error(tmp_path / "a.json", bytes(content))
    assert refused > 100


def assert_same_error(path, content):
    path.write_bytes(content)
    try:
        rows = read_json(path, "mend it")
    except ValueError as error:
        with pytest.raises(ValueError) as found:
            list(read_elements(path, "mend it"))
        assert str(found.value) == str(error)
        return True
    assert list(read_elements(path, "mend it")) == rows
    return False


def test_a_byte_order_mark_is_read(tmp_path, block):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8-sig")
    assert read_json(path, "mend it") == ROWS and list(read_elements(path, "mend it")) == ROWS
    path.write_text(json.dumps(ROWS)[:-5], encoding="utf-8-sig")
    assert assert_same_error(path, path.read_bytes())


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path, block, encoding):
    path = tmp_path / "a.json"
    content = f"\ufeff{json.dumps(ROWS)}".encode(encoding)
    assert assert_same_error(path, content)
    with pytest.raises(ValueError, match=r"a\.json is in UTF-16 .*expected UTF-8; convert it"):
        read_json(path, "mend it")


@pytest.mark.parametrize("content", ["{}", "1", "null", ' "[]"'])
def test_what_is_no_list_is_told(tmp_path, block, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(TypeError, match=r"a\.json holds no list"):
        list(read_elements(path, "mend it"))
