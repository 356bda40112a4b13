"""Reading and writing files of weights."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import re
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
from bevkd2.checkpoint.inert import Ignored, ignored_names
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


class History:
    """An object beside the weights, as mmengine's history buffers."""

    def __init__(self) -> None:
        self.values, self.kinds = np.arange(4.0), {"mean": len}


class Names(dict):
    """A container of another kind."""


def foreign_content() -> dict[str, Any]:
    shared = torch.arange(6.0)
    return {
        "meta": {"epoch": np.int64(3), "time": "now", "history": [History(), {1, 2}, Names(a=1)]},
        "state_dict": OrderedDict(
            weight=shared.view(2, 3).t(),
            half=shared[2:4],
            parameter=torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
            empty=torch.zeros(0, 3),
            flag=torch.tensor([True]),
            wide=torch.ones(2, dtype=torch.uint16),
        ),
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_beside_other_objects_are_read_and_the_objects_named(
    tmp_path: Path, protocol: int, caplog: pytest.LogCaptureFixture
) -> None:
    path, content = tmp_path / "mm.pth", foreign_content()
    torch.save(content, path, pickle_protocol=protocol)
    found = load_file(path)
    for name, tensor in content["state_dict"].items():
        assert found["state_dict"][name].dtype == tensor.dtype
        assert torch.equal(found["state_dict"][name], tensor), name
        assert found["state_dict"][name].stride() == tensor.stride()
    assert found["meta"]["time"] == "now" and found["meta"]["history"][1] == {1, 2}
    assert "tests.checkpoint.test_io.History" in caplog.text and "multiarray.scalar" in caplog.text
    assert repr(found["meta"]["history"][0]) == "<tests.checkpoint.test_io.History, not read>"


def test_a_bomb_beside_tensors_is_not_executed_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "bomb.pth"
    torch.save({"model": WEIGHTS, "more": Bomb(sprung)}, path)
    assert set(load_state(path)) == set(WEIGHTS)
    assert not sprung.exists() and f"{os.name}.system" in caplog.text


def write_pickle(path: Path, code: bytes) -> None:
    """Writes a zip file as torch's, with a pickle of one's own and one storage of two float32."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", np.array([1, 2], dtype=np.float32).tobytes())
        archive.writestr("archive/version", "3\n")


# A tensor of the storage "0": the arguments offset, size and stride follow.
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ"
)
GOOD = TENSOR + b"K\x00K\x02\x85K\x01\x85\x89}tR"
CALLS = {
    "REDUCE": b"cos\nsystem\nX\x04\x00\x00\x00exit\x85R",
    "INST": b"(X\x04\x00\x00\x00exitios\nsystem\n",
    "OBJ": b"(cos\nsystem\nX\x04\x00\x00\x00exito",
    "NEWOBJ": b"cos\nsystem\nX\x04\x00\x00\x00exit\x85\x81",
    "NEWOBJ_EX": b"cos\nsystem\nX\x04\x00\x00\x00exit\x85}\x92",
    "BUILD": b"cos\nsystem\n}X\x08\x00\x00\x00__code__K\x01sb",
    "SETITEM": b"cos\nsystem\nK\x01K\x02s",
    "APPEND": b"cos\nsystem\nK\x01a",
}


@pytest.mark.parametrize("call", CALLS)
def test_every_instruction_that_calls_is_inert(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("called"))
    write_pickle(tmp_path / "x.pth", b"\x80\x02}(K\x01" + CALLS[call] + b"K\x02" + GOOD + b"u.")
    content = load_file(tmp_path / "x.pth")
    assert isinstance(content[1], Ignored) and content[1].name == "os.system"
    assert content[2].tolist() == [1, 2]


@pytest.mark.parametrize(
    "code",
    [
        b"\x82\x01.",  # an extension code
        b"\x96" + b"\xff" * 7 + b"\x00.",  # a bytearray of any size
        TENSOR + b"K\x01K\x02\x85K\x01\x85\x89}tR.",  # beyond the end of the storage
        TENSOR + b"K\x00J\x00\x00\x00\x7f\x85K\x01\x85\x89}tR.",
        TENSOR + b"J\xff\xff\xff\xffK\x01\x85K\x01\x85\x89}tR.",
        b"K\x01K\x02\x85R.",  # calls a number
        GOOD + b"K\x00K\x01s.",  # sets an item of a tensor
        b"]" + GOOD + b"K\x07a.",  # appends to a tensor
        b"X\xff\xff\xff\x7fabc.",
    ],
)
def test_other_instructions_are_named_errors(tmp_path: Path, code: bytes) -> None:
    # os.system, so that torch's own reader refuses it first
    write_pickle(tmp_path / "x.pth", b"\x80\x02cos\nsystem\n0" + code)
    with pytest.raises(CheckpointFileError, match=r"x\.pth is (damaged|refused)"):
        load_file(tmp_path / "x.pth")


def test_deep_and_entangled_contents_are_walked_once() -> None:
    deep: list[Any] = []
    for _ in range(20_000):
        deep = [deep]
    wide: list[Any] = [Ignored("a.B")]
    for _ in range(100):
        wide = [wide, wide]
    wide.append(wide)
    assert ignored_names([deep, wide]) == ["a.B"]


def test_a_compressed_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(100_000)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    with pytest.raises(CheckpointFileError, match="would unpack from"):
        load_file(tmp_path / "x.pth")


def test_a_bit_that_flipped_is_found(tmp_path: Path) -> None:
    """Torch reads on, with another weight."""
    path = tmp_path / "w.pth"
    save_file({"a": torch.full((4,), 7.0)}, path)
    data = path.read_bytes()
    place = data.index(torch.full((4,), 7.0).numpy().tobytes())
    path.write_bytes(data[:place] + b"\1" + data[place + 1 :])
    assert torch.load(path, weights_only=True)["a"][0] != 7
    with pytest.raises(
        CheckpointFileError, match=r"w\.pth is damaged: the checksum of .*data/0 in it is wrong"
    ):
        load_file(path)


def test_an_archive_that_lost_bytes_is_named(tmp_path: Path) -> None:
    """Its directory is looked for before the beginning of the file."""
    path = tmp_path / "w.pth"
    save_file({"a": torch.ones(999)}, path)
    path.write_bytes(path.read_bytes()[-100:])
    with pytest.raises(CheckpointFileError, match=r"w\.pth is damaged"):
        load_file(path)


def test_old_format_with_objects_is_refused_by_a_readable_message(tmp_path: Path) -> None:
    torch.save(foreign_content(), tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(
        CheckpointFileError, match=r"\(numpy[\w.]+\) in the format of before torch 1\.6"
    ) as error:
        load_file(tmp_path / "x.pth")
    assert "\x1b" not in str(error.value)


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


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132735435\n"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LFS_POINTER, "is a pointer of git-lfs, not the weights themselves; fetch them: git lfs pull"),
        ("\n<!DOCTYPE html><html>", "is a web page, not weights; download the file again"),
        ("<html><head>" + "\u00e9" * 999, "is a web page, not weights; download the file again"),
        ("404: Not Found", "is a text, not weights: it begins with '404: Not Found'; copy or download"),
    ],
)
def test_text_in_place_of_weights_is_named(tmp_path: Path, suffix: str, text: str, message: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointFileError, match=rf"w{suffix} \({path.stat().st_size} bytes\) {message}"):
        load_file(path)


def test_the_advice_to_execute_a_file_is_not_passed_on(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"\xff<!DOCTYPE html>")
    with pytest.raises(CheckpointFileError, match=r"w\.pth is damaged or not a PyTorch file") as error:
        load_file(tmp_path / "w.pth")
    assert "weights_only" not in str(error.value) and "Re-running" not in str(error.value)


def test_a_torchscript_program_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:  # as torch.jit.save does
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
            archive.writestr(f"w/{name}", "x" * 1000)
    with pytest.raises(
        CheckpointFileError, match=r"w\.pth is refused: it is a TorchScript program .*state_dict"
    ):
        load_file(tmp_path / "w.pth")


def test_a_defaultdict_is_read_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = collections.defaultdict(list, {"loss": [1.0]})
    torch.save({"model": {"w": torch.ones(2)}, "history": history}, tmp_path / "w.pth")
    assert load_file(tmp_path / "w.pth")["history"] == {"loss": [1.0]}
    assert not caplog.records


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


@pytest.mark.parametrize("names", ["Car,Van", "", "[" * 100_000])
def test_classes_that_are_no_json_are_named(tmp_path: Path, names: str) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, path, {"classes": names})
    message = (
        rf"w\.safetensors: 'classes' of its metadata is '{re.escape(names[:40])}', expected a list of names"
    )
    with pytest.raises(CheckpointFileError, match=message):
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
