"""The op of docs/adding_an_op.md compiles as it is printed there, on the CPU and for the CUDA emulation."""

from __future__ import annotations

import re
import shutil
import types
from collections.abc import Callable
from inspect import signature
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import bevkd2.ops
from tests.cuda_emulation import build
from tests.docs.pages import ROOT
from tests.ops import references

PAGE = ROOT / "docs" / "adding_an_op.md"
FILES = ("energy.h", "energy_cpu_kernels.h", "energy_cpu.cpp", "energy_cuda.cu", "energy.py")
# The library of each device has a namespace of its own, so that both can be loaded and compared.
NAMESPACES = {"energy_cpu.cpp": "bevkd2_page", "energy_cuda.cu": "bevkd2_page_emulated"}


def block_after(heading: str) -> str:
    """The first fenced block of more than a few words after a heading."""
    found = re.search(rf"^## {re.escape(heading)}.*?^```\w+\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert found is not None, f"{PAGE.name} has no block under {heading!r}"
    return found.group(1)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> types.ModuleType:
    """The page's Python module, over libraries of the page's C++."""
    if build.compiler() is None:
        pytest.skip("no C++ compiler (c++ or g++)")
    headings = {
        name: heading
        for heading in re.findall(r"^## (.+)$", PAGE.read_text(), re.M)
        for name in FILES
        if f"`{name}`" in heading
    }
    assert set(headings) == set(FILES)
    root = tmp_path_factory.mktemp("page")
    folder = root / "csrc" / "distill_loss"
    folder.mkdir(parents=True)
    shutil.copytree(ROOT / "csrc" / "core", root / "csrc" / "core")
    for name, heading in headings.items():
        (folder / name).write_text(block_after(heading))
    schema = "#include <torch/csrc/stable/library.h>\nSTABLE_TORCH_LIBRARY(bevkd2, m) {\n%s}\n"
    (folder / "schema.cpp").write_text(schema % block_after("Schema"))
    for source, namespace in NAMESPACES.items():
        torch.ops.load_library(library(folder, source, namespace))
    text = (folder / "energy.py").read_text().replace("from .", "from bevkd2.ops.")
    text = text.replace("bevkd2::", "bevkd2_page::").replace("torch.ops.bevkd2.", "torch.ops.bevkd2_page.")
    module = types.ModuleType("energy")
    exec(compile(text, str(folder / "energy.py"), "exec"), module.__dict__)
    return module


def library(folder: Path, source: str, namespace: str) -> Path:
    """Compiles a source and the schemas into a library with a namespace of its own."""
    torch_folder = Path(torch.__file__).parent
    flags = [
        f"-I{build.HERE}",
        f"-I{torch_folder}/include",
        f"-I{torch_folder}/include/torch/csrc/api/include",
    ]
    flags += [f"-Dbevkd2={namespace}", *(flag for flag in build.FLAGS if "bevkd2_emulated" not in flag)]
    if source.endswith(".cpp"):
        flags.remove("-DBEVKD2_CUDA_EMULATION")
    whole = folder / f"{namespace}.cpp"  # one file, as torch's headers take most of the time
    whole.write_text(f'#include "{source}"\n#include "schema.cpp"\n')
    flags += ["-shared", "-x", "c++", str(whole)]
    to = folder / f"{namespace}.so"
    build.execute([*flags, f"-L{torch_folder}/lib", "-ltorch", "-ltorch_cpu", "-lc10"], to)
    return to


def blocks_of_the_tests() -> list[str]:
    """Returns the page's reference, its test file and the command that runs it."""
    section = PAGE.read_text().partition("\n## Test\n")[2].partition("\n## ")[0]
    return re.findall(r"^```text\n(.*?)^```$", section, re.M | re.S)


def namespace(text: str) -> dict[str, Any]:
    """Returns what a block defines."""
    names: dict[str, Any] = {"torch": torch, "Tensor": torch.Tensor}
    exec(compile(text, str(PAGE), "exec"), names)
    return names


def cases(function: Callable[..., None]) -> list[dict[str, Any]]:
    """Returns the arguments of every case of a parametrised test."""
    marks = [mark.args for mark in getattr(function, "pytestmark", ())]
    return [dict(zip([n for n, _ in marks], each, strict=True)) for each in product(*(v for _, v in marks))]


TESTS = re.findall(r"^def (test_\w+)", blocks_of_the_tests()[1], re.M)


@pytest.mark.parametrize("name", TESTS)
def test_the_page_s_test_passes(page: types.ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the op were one of bevkd2."""
    reference, text, _ = blocks_of_the_tests()
    monkeypatch.setattr(bevkd2.ops, "energy", page.energy, raising=False)
    plain = namespace(reference)["energy_reference"]
    monkeypatch.setattr(references, "energy_reference", plain, raising=False)
    monkeypatch.setattr(torch.ops, "bevkd2", torch.ops.bevkd2_page)
    test = namespace(text)[name]
    fixtures = {"emulated": torch.ops.bevkd2_page_emulated}
    used = {key: value for key, value in fixtures.items() if key in signature(test).parameters}
    for arguments in cases(test):
        test(**arguments, **used)


def test_the_page_has_a_test_of_each_kind() -> None:
    assert len(TESTS) == 6
