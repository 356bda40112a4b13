"""The op of docs/adding_an_op.md compiles as it is printed there, on the CPU and for the CUDA emulation."""

from __future__ import annotations

import re
import shutil
import types
from pathlib import Path

import pytest
import torch

from bevkd2.ops import weighted_l2  # noqa: F401  loads the library that the op's module would load
from tests.cuda_emulation import build
from tests.docs.pages import ROOT

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
    flags += ["-shared", "-x", "c++", str(folder / source), str(folder / "schema.cpp")]
    to = folder / f"{namespace}.so"
    build.execute([*flags, f"-L{torch_folder}/lib", "-ltorch", "-ltorch_cpu", "-lc10"], to)
    return to


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_page_s_op_is_right(page: types.ModuleType, dtype: torch.dtype) -> None:
    x = torch.randn(3, 30000).to(dtype).requires_grad_()
    loss = page.energy(x, loss_weight=0.01)
    torch.testing.assert_close(loss.double(), 0.01 * x.detach().double().square().sum(), rtol=1e-5, atol=0)
    grad = torch.autograd.grad(4 * loss, x)[0]
    torch.testing.assert_close(
        grad, (0.08 * x.detach().double()).to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6
    )


def test_the_page_s_op_passes_gradcheck_and_opcheck(page: types.ModuleType) -> None:
    x = torch.randn(13, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(page.energy, x)
    torch.library.opcheck(torch.ops.bevkd2_page.energy, (x, 0.3, True))
    with pytest.raises(RuntimeError, match="energy has no second derivative"):
        torch.autograd.grad(page.energy(x), x, create_graph=True)


def test_the_page_s_cuda_kernels_match_its_cpu_kernels(page: types.ModuleType) -> None:
    for count in (0, 1, 8193, 50000):
        x = torch.randn(count)
        for need_grad in (True, False):
            expected = torch.ops.bevkd2_page.energy(x, 0.3, need_grad)
            torch.testing.assert_close(torch.ops.bevkd2_page_emulated.energy(x, 0.3, need_grad), expected)
        arguments = (torch.tensor(2.0), x, 0.3)
        torch.testing.assert_close(
            torch.ops.bevkd2_page_emulated.energy_backward(*arguments),
            torch.ops.bevkd2_page.energy_backward(*arguments),
        )
