"""The emulation runs correct kernels correctly, and reports the faults of incorrect ones."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.cuda_emulation import build


@pytest.fixture(scope="module")
def selftest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if build.compiler() is None:
        pytest.skip("no C++ compiler (c++ or g++) to build the CUDA emulation with")
    program = tmp_path_factory.mktemp("selftest") / "selftest.out"
    build.execute(["-std=c++20", "-O1", "-U_FORTIFY_SOURCE", str(build.HERE / "selftest.cpp")], program)
    return program


@pytest.mark.parametrize("seed", ["", "1", "2"])
@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("reverse_through_shared_memory", "63 62 48 0 0"),
        ("sum_by_shuffles", "496 496 496 496 0"),
        ("half_a_warp_shuffles", "1 2 15 0 0"),
        ("votes", "48 48 48 48 0"),
        ("atomics", "0 0 0 0 256"),
        ("reads_what_nobody_wrote", "nan nan nan nan 0"),
        ("writes_too_far", "error: CUDA emulation, block (0, 0, 0), thread * wrote behind the shared memory"),
        ("barrier_in_a_branch", "error: * wait at different __syncthreads*"),
        ("shuffle_in_a_branch", "error: * threads wait for ever: *a shuffle (*"),
        ("shuffle_after_the_end", "error: * names lane 0, which has ended"),
        ("barrier_against_shuffle", "error: * threads wait for ever: *"),
        ("traps", "error: CUDA emulation, block (0, 0, 0), thread (5, 0, 0): __trap"),
    ],
)
def test_kernel(selftest: Path, kernel: str, expected: str, seed: str) -> None:
    environment = {**os.environ, "BEVKD2_EMULATION_SEED": seed} if seed else None
    result = subprocess.run([selftest, kernel], capture_output=True, text=True, check=True, env=environment)
    said = result.stdout.strip().replace("-nan", "nan")
    if seed:  # which block or thread fails first depends on the order
        expected = expected.replace("block (0, 0, 0)", "block *").replace("lane 0", "lane *")
    assert fits(said, expected), said


def fits(said: str, expected: str) -> bool:
    """Whether the parts of `expected` between its stars are in `said`, in order."""
    at = 0
    for part in expected.split("*"):
        found = said.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return at == len(said) or expected.endswith("*")
