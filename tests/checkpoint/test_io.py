"""Reading and writing files of weights."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bevkd2.checkpoint import CheckpointFileError, load_file, load_state, save_file
from bevkd2.checkpoint.io import replace_atomically

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file({**WEIGHTS, "t": WEIGHTS["a.weight"].t()}, path)
    state = load_state(path)
    assert sorted(state) == ["a.bias", "a.weight", "t"]
    assert torch.equal(state["t"], WEIGHTS["a.weight"].t())
    assert names_in(tmp_path) == [path.name]


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_bomb_is_refused_and_not_executed(tmp_path: Path, legacy: bool) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "bomb.pth"
    torch.save({"model": Bomb(sprung)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointFileError, match=r"bomb\.pth is refused.*convert it once.*bomb\.safetensors"
    ):
        load_file(path)
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists(), "the bomb must be live, or this test shows nothing"


def test_bare_pickle_bomb_is_refused_under_every_suffix(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    for suffix in (".pth", ".pkl", ".pt", ".safetensors", ""):
        path = tmp_path / f"bomb{suffix}"
        path.write_bytes(pickle.dumps({"model": Bomb(sprung)}))
        with pytest.raises(CheckpointFileError, match=f"bomb{suffix}"):
            load_file(path)
    assert not sprung.exists()


def test_pkl_error_says_what_is_read_and_how_to_convert(tmp_path: Path) -> None:
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": np.ones(2)}}))
    with pytest.raises(
        CheckpointFileError, match=r"R-50\.pkl.*expected \.pth or \.safetensors.*convert it once"
    ):
        load_file(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@settings(deadline=None)
@given(cut=st.floats(0, 0.999))
def test_truncated_file_is_a_named_error(
    suffix: str, cut: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / f"cut{suffix}"
    save_file(WEIGHTS, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(CheckpointFileError, match=r"cut\.\w+ is (damaged|refused)"):
        load_file(path)


@settings(deadline=None)
@given(content=st.binary(max_size=200))
def test_garbage_is_a_named_error(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("garbage") / "garbage.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointFileError, match=r"garbage\.pth"):
        load_file(path)


def test_zip_that_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "photos.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.jpg", "x")
    with pytest.raises(CheckpointFileError, match=r"photos\.pth is damaged or not a PyTorch file"):
        load_file(path)


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*none\.pth does not exist"):
        load_file(tmp_path / "none.pth")


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, {"model": {"a": "text"}}])
def test_file_without_weights(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "notes.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointFileError, match=r"notes\.pth has no weights"):
        load_state(path)


def test_state_is_found_under_model(tmp_path: Path) -> None:
    save_file({"model": OrderedDict(WEIGHTS), "trainer": {"iteration": 4}}, tmp_path / "full.pth")
    assert set(load_state(tmp_path / "full.pth")) == set(WEIGHTS)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_classes_stay_with_bare_weights(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file({**WEIGHTS, "classes": ["Car", "Van"]}, path)
    assert load_file(path)["classes"] == ["Car", "Van"]
    assert set(load_state(path)) == set(WEIGHTS)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_write_that_fails_leaves_the_old_file_and_says_why(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(WEIGHTS, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_file({"w": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert load_file(path).keys() == WEIGHTS.keys()


@pytest.mark.parametrize("names", ['"Car"', "5", "[1, 2]", '{"Car": 0}', "null"])
def test_classes_that_are_no_list_of_names_are_refused(tmp_path: Path, names: str) -> None:
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors", {"classes": names})
    torch.save({"model": {"w": torch.ones(2)}, "classes": json.loads(names)}, tmp_path / "w.pth")
    for path in (tmp_path / "w.safetensors", tmp_path / "w.pth"):
        with pytest.raises(CheckpointFileError, match=r"w\..*'classes' is .*expected a list of names"):
            load_file(path)


def test_numpy_numbers_are_stored_as_pythons(tmp_path: Path) -> None:
    content = {"best": np.float64(0.5), "n": np.int64(3), "list": [np.float32(1.5)], "array": np.arange(3)}
    save_file(content, tmp_path / "x.pth")
    back = load_file(tmp_path / "x.pth")
    assert back["best"] == 0.5 and type(back["best"]) is float and type(back["n"]) is int
    assert back["list"] == [1.5] and torch.equal(back["array"], torch.arange(3))


def test_saving_refuses_what_could_not_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    save_file({"n": 1}, path)
    with pytest.raises(TypeError, match=r"entry trainer\.hooks\.Mine\[1\] is a BytesIO"):
        save_file({"trainer": {"hooks": {"Mine": [1, io.BytesIO()]}}}, path)
    assert load_file(path) == {"n": 1}


def test_failed_write_keeps_the_old_file_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    save_file({"n": 1}, path)

    def fail_midway(file: Any) -> None:
        file.write(b"half of a")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_atomically(path, fail_midway)
    assert load_file(path) == {"n": 1}
    assert names_in(tmp_path) == ["x.pth"]
