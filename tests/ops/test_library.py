"""Loading of the compiled libraries, and the choice of CPU kernels."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import bevkd2
from bevkd2.ops import library, ms_deform_attn
from tests.ops import test_ms_deform_attn_fused as fused_tests
from tests.ops.deform_attn_tester import SIZES, Case, assert_close, run

PACKAGE = Path(bevkd2.__file__).parent
BUILD_HINT = "`make build`, or `pip install --no-build-isolation -e .`"


def test_import_without_the_library_says_how_to_build_it(tmp_path: Path) -> None:
    copy = tmp_path / "bevkd2"
    copy.mkdir()
    shutil.copy(PACKAGE / "__init__.py", copy)
    shutil.copytree(PACKAGE / "ops", copy / "ops", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "import bevkd2.ops"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "ImportError: bevkd2's compiled ops are missing" in result.stderr
    assert BUILD_HINT in result.stderr


def test_a_library_that_does_not_load_says_how_to_build_it(tmp_path: Path) -> None:
    broken = tmp_path / "_C.abi3.so"
    broken.write_text("not a library")
    with pytest.raises(ImportError, match="do not load with torch") as error:
        library.load(broken, tmp_path / "missing")
    assert BUILD_HINT in str(error.value)


def test_cuda_tensors_without_the_cuda_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "HAS_CUDA", False)
    with FakeTensorMode():  # a CUDA tensor where there is no CUDA
        value = torch.empty(1, 4, 1, 8, device="cuda")
        locations = torch.empty(1, 1, 1, 1, 1, 2, device="cuda")
        with pytest.raises(
            RuntimeError, match=re.escape("`FORCE_CUDA=1 pip install --no-build-isolation -e .`")
        ):
            ms_deform_attn(value, [(2, 2)], None, locations, locations[..., 0])


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEVKD2_CPU_CAPABILITY", "AVX2")
    expected = "BEVKD2_CPU_CAPABILITY is 'AVX2'; expected default, avx2, avx512, or unset it"
    with pytest.raises(ValueError, match=expected):
        library.load(library.CPU_LIBRARY, library.CUDA_LIBRARY)


@pytest.mark.parametrize("capability", ["avx2", "avx512"])  # at most what the processor has
def test_kernels_of_an_instruction_set_agree_with_plain_ones(capability: str, tmp_path: Path) -> None:
    """Runs each in a process of its own."""
    script = (
        "import sys, torch\n"
        "from tests.ops.test_library import fused_cases\n"
        "torch.save(fused_cases(), sys.argv[1])\n"
    )
    root = str(PACKAGE.parent)
    found = []
    for name in ("default", capability):
        saved = tmp_path / f"{name}.pt"
        environment = {**os.environ, "PYTHONPATH": root, "BEVKD2_CPU_CAPABILITY": name}
        subprocess.run([sys.executable, "-c", script, str(saved)], cwd=root, env=environment, check=True)
        found.append(torch.load(saved, weights_only=True))
    plain, others = found
    for dtype in plain:
        for one, other in zip(plain[dtype], others[dtype], strict=True):
            assert_close(one, other, 3e-5 if dtype == "torch.float32" else 1e-2)


def fused_cases() -> dict[str, list[dict[str, torch.Tensor]]]:
    """Returns results of the fused op by the dtype of value."""
    cases: list[Case] = [SIZES["wide"], SIZES["odd"], SIZES["long"]]
    cases += [Case(width=width) for width in (15, 16, 23, 33, 64, 77)]  # whole vectors, and rests of them
    results = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        results[str(dtype)] = []
        for case in cases:
            inputs = fused_tests.TestMSDeformAttnFused().make(case, torch.float32)
            inputs["value"] = inputs["value"].to(dtype)
            results[str(dtype)].append(run(fused_tests.TestMSDeformAttnFused.op, inputs))
    return results
