import dataclasses
import json
import os
import re
import time

import numpy as np
import pytest

from bevkd2.data.nuscenes import dataset as nuscenes
from bevkd2.data.nuscenes.dataset import load_nuscenes
from bevkd2.data.nuscenes.index import cache_directory, concatenate
from tests.data.nuscenes_fixture import VERSION, FixtureWorld


@pytest.fixture
def builds(monkeypatch):
    """Counts how often the tables are read."""
    calls = []
    original = nuscenes.build_index

    def counting(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(nuscenes, "build_index", counting)
    return calls


def test_second_load_reads_the_cache(tmp_path, builds):
    world = FixtureWorld(tmp_path, scenes=1, frames=2)
    first = load_nuscenes(world.root, VERSION, "first")
    second = load_nuscenes(world.root, VERSION, "first")
    assert len(builds) == 1
    for field in dataclasses.fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        np.testing.assert_array_equal(a, b) if isinstance(a, np.ndarray) else None
        assert isinstance(a, np.ndarray) or a == b
    assert [p.suffix for p in (world.root / ".bevkd2_cache").iterdir() if p.suffix != ".lock"] == [".npz"]


def test_changed_table_invalidates(tmp_path, builds):
    world = FixtureWorld(tmp_path, scenes=1, frames=2)
    assert load_nuscenes(world.root, VERSION, "first").num_lidar_pts[0] == 30
    world.tables["sample_annotation"][0]["num_lidar_pts"] = 31
    time.sleep(0.01)
    world.write()
    assert load_nuscenes(world.root, VERSION, "first").num_lidar_pts[0] == 31
    assert len(builds) == 2


def test_changed_splits_invalidate(tmp_path, builds):
    world = FixtureWorld(tmp_path, scenes=2, frames=1)
    assert len(load_nuscenes(world.root, VERSION, "first")) == 1
    world.splits["first"] = ["scene-0001", "scene-0002"]
    world.write()
    assert len(load_nuscenes(world.root, VERSION, "first")) == 2


def test_cameras_and_splits_have_files_of_their_own(tmp_path, builds):
    world = FixtureWorld(tmp_path, scenes=2, frames=1)
    for _ in range(2):
        assert len(load_nuscenes(world.root, VERSION, "both")) == 2
        assert len(load_nuscenes(world.root, VERSION, "first")) == 1
        assert load_nuscenes(world.root, VERSION, "first", cameras=("CAM_BACK",)).filenames.shape == (1, 1)
    assert len(builds) == 3


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", None])
def test_damaged_cache_is_built_again(tmp_path, builds, caplog, damage):
    world = FixtureWorld(tmp_path, scenes=1, frames=1)
    load_nuscenes(world.root, VERSION, "first")
    path = next((world.root / ".bevkd2_cache").glob("*.npz"))
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    assert len(load_nuscenes(world.root, VERSION, "first")) == 1
    assert len(builds) == 2 and "building it again" in caplog.text


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        ("deflated", b"\xff" * 16, "invalid"),
        ("method", b"\x63", "not supported"),
        ("flags", b"\x01", "encrypted"),
    ],
)
def test_garbled_member_of_the_cache_is_built_again(tmp_path, builds, caplog, at, value, error):
    world = FixtureWorld(tmp_path, scenes=1, frames=1)
    load_nuscenes(world.root, VERSION, "first")
    path = next((world.root / ".bevkd2_cache").glob("*.npz"))
    data = path.read_bytes()
    # A member's local header of 30 bytes and its name; the central directory repeats flags and method.
    entry = data.rindex(b"PK\x01\x02")
    local = int.from_bytes(data[entry + 42 : entry + 46], "little")
    offset = {
        "deflated": local + 30 + sum(data[local + 26 : local + 30 : 2]),
        "method": entry + 10,
        "flags": entry + 8,
    }[at]
    path.write_bytes(data[:offset] + value + data[offset + len(value) :])
    assert len(load_nuscenes(world.root, VERSION, "first")) == 1
    assert len(builds) == 2 and re.search(rf"({error}).*building it again", caplog.text)


def test_cache_that_names_images_outside_of_the_root_is_built_again(tmp_path, builds, caplog):
    world = FixtureWorld(tmp_path, scenes=1, frames=1)
    load_nuscenes(world.root, VERSION, "first")
    path = next((world.root / ".bevkd2_cache").glob("*.npz"))
    with np.load(path) as file:
        arrays = {**file}
    np.savez(path, **{**arrays, "filenames": np.full_like(arrays["filenames"], b"../secret.jpg")})
    names = load_nuscenes(world.root, VERSION, "first")[0]["file_names"]
    assert len(builds) == 2 and "outside of the dataset's root" in caplog.text
    assert all(".." not in name for name in names)


def test_cache_holds_no_pickle(tmp_path):
    world = FixtureWorld(tmp_path, scenes=1, frames=1)
    load_nuscenes(world.root, VERSION, "first")
    path = next((world.root / ".bevkd2_cache").glob("*.npz"))
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
        assert json.loads(str(file["header"]))["version"] == VERSION


def test_cache_directory(tmp_path, monkeypatch):
    root = tmp_path / "root"
    root.mkdir()
    assert cache_directory(root, "") == root / ".bevkd2_cache"
    assert cache_directory(root, str(tmp_path / "mine")).parent == tmp_path / "mine"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # a read-only root (root itself may write anywhere)
    assert cache_directory(root, "").parent == tmp_path / "xdg" / "bevkd2"


def test_concatenated_splits(tmp_path):
    world = FixtureWorld(tmp_path, scenes=2, frames=2)
    world.splits["second"] = ["scene-0002"]
    world.write()
    parts = [load_nuscenes(world.root, VERSION, split) for split in ("first", "second")]
    joined, both = concatenate(parts), load_nuscenes(world.root, VERSION, "both")
    assert joined.split == "first+second"
    for name in ("scene_starts", "box_starts", "boxes", "timestamps", "labels"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(both, name))
