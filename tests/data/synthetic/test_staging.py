import json

import pytest

from bevkd2.data.synthetic.staging import MARKER, write_once


def marker(**config):
    return {"generator_version": 1, "config": {"seed": 0, "hue_sigma": 0.03, **config}}


def fill(root):
    (root / "data.txt").write_text("data")


def forbidden(root):
    raise AssertionError("nothing is to be made")


def test_a_world_is_written_whole_with_its_marker(tmp_path):
    root = write_once(tmp_path / "deep" / "world", marker(), False, fill)
    assert (root / "data.txt").read_text() == "data"
    assert json.loads((root / MARKER).read_text()) == marker()
    assert [p.name for p in root.parent.iterdir()] == ["world"]


def test_the_same_world_is_kept(tmp_path):
    write_once(tmp_path / "world", marker(), False, fill)
    for overwrite in (False, True):
        assert write_once(tmp_path / "world", marker(), overwrite, forbidden) == tmp_path / "world"


def test_another_world_needs_overwrite(tmp_path):
    root = write_once(tmp_path / "world", marker(), False, fill)
    (root / "old.txt").write_text("old")
    with pytest.raises(FileExistsError, match=r"\(hue_sigma: 0.03, now 0.5\).*--overwrite"):
        write_once(root, marker(hue_sigma=0.5), False, forbidden)
    write_once(root, marker(hue_sigma=0.5), True, fill)
    assert sorted(p.name for p in root.iterdir()) == ["data.txt", MARKER]
    assert [p.name for p in tmp_path.iterdir()] == ["world"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({**marker(), "format": "kitti"}, "format nuscenes, now kitti"),
        ({**marker(), "generator_version": 2}, "generator version 1, now 2"),
    ],
)
def test_the_refusal_says_what_differs(wanted, message, tmp_path):
    write_once(tmp_path / "world", marker(), False, fill)
    with pytest.raises(FileExistsError, match=message):
        write_once(tmp_path / "world", wanted, False, forbidden)


def test_a_folder_without_a_marker_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not a synthetic world"):
        write_once(tmp_path, marker(), True, forbidden)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "world").mkdir()
    assert (write_once(tmp_path / "world", marker(), False, fill) / "data.txt").is_file()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_keeps_the_existing_world(overwrite, tmp_path):
    def fail(root):
        fill(root)
        raise OSError("no space left on device")

    if overwrite:
        write_once(tmp_path / "world", marker(), False, fill)
    with pytest.raises(OSError, match="no space"):
        write_once(tmp_path / "world", marker(seed=1), overwrite, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["world"] * overwrite
    if overwrite:
        assert json.loads((tmp_path / "world" / MARKER).read_text()) == marker()


@pytest.mark.parametrize("content", ["", '{"config', "[1]", "7"])
def test_a_damaged_marker_is_named(tmp_path, content):
    root = write_once(tmp_path / "world", marker(), False, fill)
    (root / MARKER).write_text(content)
    with pytest.raises(FileExistsError, match=rf"{MARKER} is damaged .*, so .*world is not replaced"):
        write_once(root, marker(), True, forbidden)
