"""The record of the CUDA kernels: launches are those of the sources, occupancy is the toolkit's."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cuda_kernels
from benchmarks.bench_ms_deform_attn import SHAPES
from benchmarks.cuda_kernels import COMPILE, LAUNCHES, LIMITS, ROOT, launch_of, resident_blocks
from tests.limits import PROGRAM_SECONDS

Kernel = COMPILE["Kernel"]
CALCULATOR = r"""
#include <cstddef>
#include <cstdio>
#include <cuda_occupancy.h>
int main() {
  int major, minor, registers, threads;
  size_t of_block, of_sm;
  while (scanf("%d %d %d %d %zu %zu", &major, &minor, &registers, &threads, &of_block, &of_sm) == 6) {
    cudaOccDeviceProp properties;
    properties.computeMajor = major;
    properties.computeMinor = minor;
    properties.maxThreadsPerBlock = 1024;
    properties.maxThreadsPerMultiprocessor = 2048;
    properties.regsPerBlock = properties.regsPerMultiprocessor = 65536;
    properties.warpSize = 32;
    properties.sharedMemPerBlock = 49152;
    properties.sharedMemPerMultiprocessor = of_sm;
    properties.sharedMemPerBlockOptin = of_sm - 1024;
    properties.reservedSharedMemPerBlock = 1024;
    properties.numSms = 100;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = 0;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = of_sm - 1024;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &properties, &kernel, &state, threads, of_block))
      return 1;
    printf("%d\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads(COMPILE["RECORD"].read_text())


def launches(source: str) -> dict[str, tuple[str, bool]]:
    """Returns threads, as written, and whether there is dynamic shared memory, by launched kernel."""
    text = re.sub(r"\s+", " ", (ROOT / "csrc" / source).read_text())
    found = {}
    for match in re.finditer(r"cuda::launch\(", text):
        arguments, depth = [""], 0
        for letter in text[match.end() :]:
            depth += (letter in "(<[{") - (letter in ")>]}")
            if depth < 0:
                break
            if letter == "," and depth == 0:
                arguments.append("")
            else:
                arguments[-1] += letter
        kernels, _, threads, shared = (argument.strip() for argument in arguments[:4])
        found |= dict.fromkeys(re.findall(r"\w+_kernel", kernels), (threads, shared != "0"))
    return found


def test_launches_are_those_of_the_sources() -> None:
    sources = {str(path.relative_to(ROOT / "csrc")): path for path in COMPILE["cuda_sources"]()}
    assert {source for source in sources if launches(source)} == set(LAUNCHES)
    for source, kernels in LAUNCHES.items():
        expected = {name: (launch.threads_as, launch.shared_as != "0") for name, launch in kernels.items()}
        assert expected == launches(source), source
        headers = [path.read_text() for path in sources[source].parent.glob("*_cuda_*.cuh")]
        text = re.sub(r"\s+", " ", " ".join([sources[source].read_text(), *headers]))
        for name, launch in kernels.items():
            assert launch.shared_as in text, f"{source}: {name}"
            assert f" {launch.threads_as} = {launch.threads}" in text, f"{source}: {name}"


def test_dynamic_shared_memory_follows_the_template_arguments() -> None:
    def shared(source: str, kernel: str) -> int:
        launch, arguments = launch_of(source, kernel)
        return launch.shared(arguments)

    attention = "csrc/ms_deform_attn/ms_deform_attn_cuda_backward.cu"
    assert shared(attention, "backward_kernel<BFloat16, true, FloatSink<float> >") == 128 * 48 + 48
    assert shared(attention, "backward_kernel<double, true, FloatSink<double> >") == 128 * 80 + 48
    loss = "csrc/distill_loss/softmax_kl_cuda.cu"
    assert shared(loss, "rows_kernel<float, 8>") == 256 + 256 * 8 * 20
    assert shared("csrc/distill_loss/weighted_l2_cuda.cu", "chunk_kernel<Half, double>") == 32 * 8


def test_a_kernel_without_launch_is_an_error_that_names_it() -> None:
    with pytest.raises(
        KeyError, match=r"box3d_cuda.cu has the kernel other_kernel; LAUNCHES .* 'sort_kernel'"
    ):
        launch_of("csrc/box3d/box3d_cuda.cu", "other_kernel<float>")


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "arch", "expected"),
    [
        (32, 128, 0, "90", (16, "warps")),
        (32, 32, 0, "90", (32, "blocks")),
        (128, 128, 0, "90", (4, "registers")),
        (16, 64, 47 * 1024, "80", (3, "shared memory")),
        (16, 64, 47 * 1024, "90", (4, "shared memory")),
        (255, 1024, 0, "100", (0, "registers")),
    ],
)
def test_resident_blocks(
    registers: int, threads: int, shared: int, arch: str, expected: tuple[int, str]
) -> None:
    assert resident_blocks(registers, threads, shared, arch) == expected


def occupancy_header() -> Path | None:
    """Returns the folder of the toolkit's cuda_occupancy.h; None if it is not installed."""
    nvcc = shutil.which("nvcc")
    folders = [Path(nvcc).resolve().parents[1] / "include"] if nvcc else []
    folders += sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/include"))
    return next((folder for folder in folders if (folder / "cuda_occupancy.h").is_file()), None)


def test_resident_blocks_are_those_of_the_toolkits_calculator(tmp_path: Path) -> None:
    header, compiler = occupancy_header(), shutil.which("c++")
    if header is None or compiler is None:
        pytest.skip("no cuda_occupancy.h of a CUDA toolkit, or no C++ compiler")
    (tmp_path / "main.cpp").write_text(CALCULATOR)
    program = str(tmp_path / "calculator")
    subprocess.run([compiler, f"-I{header}", str(tmp_path / "main.cpp"), "-o", program], check=True)
    cases = [
        (arch, registers, threads, shared)
        for arch in LIMITS
        for registers in range(16, 256, 3)
        for threads in (32, 96, 128, 256, 512, 1024)
        for shared in (0, 520, 4144, 6192, 41216, 49000)
    ]
    lines = [
        f"{arch[:-1]} {arch[-1]} {registers} {threads} {shared} {LIMITS[arch].shared}"
        for arch, registers, threads, shared in cases
    ]
    done = subprocess.run(
        [program], input="\n".join(lines), capture_output=True, text=True, check=True, timeout=PROGRAM_SECONDS
    )
    ours = [
        resident_blocks(registers, threads, shared, arch)[0] for arch, registers, threads, shared in cases
    ]
    assert ours == [int(line) for line in done.stdout.split()]


def test_what_follows_from_the_record_is_current(record: dict[str, Any], tmp_path: Path) -> None:
    kernels: dict[str, list[Any]] = {}
    for row in record["kernels"]:
        for arch, on in row["sm"].items():
            kernel = Kernel(row["kernel"], arch, on["registers"], on["static_shared"], on["spilled"])
            kernels.setdefault(row["source"], []).append(kernel)
    cuda_kernels.write(tmp_path / "record.json", record["nvcc"], kernels)
    again = json.loads((tmp_path / "record.json").read_text())
    for key in ("levels", "kernels", "paper"):
        assert again[key] == record[key], "run python -m benchmarks.cuda_kernels"


def test_the_record_has_every_kernel_on_every_architecture(record: dict[str, Any]) -> None:
    assert {tuple(row["sm"]) for row in record["kernels"]} == {COMPILE["ARCHITECTURES"]}
    found: dict[str, set[str]] = {}
    for row in record["kernels"]:
        found.setdefault(row["source"].removeprefix("csrc/"), set()).add(row["kernel"].partition("<")[0])
    assert found == {source: set(kernels) for source, kernels in LAUNCHES.items()}


def test_bytes_per_point_of_one_case_by_hand() -> None:
    shape = dataclasses.replace(SHAPES["temporal"], batch=1, queries=10, levels=((2, 3),), points=5)
    row = cuda_kernels.paper_row("case", shape, torch.bfloat16, "backward")
    points = 10 * 8 * 5
    value, out = 6 * 8 * 32, 10 * 8 * 32
    assert row["points"] == points
    assert row["memory_bytes_per_point"] == (2 * (value + out) + 24 * points + 8 * value) / points
    assert row["l1_bytes_per_point"] == 4 * 64 + 24 + 64
    assert row["reduced_bytes_per_point"] == 4 * 128
    assert row["flops_per_point"] == 16 * 32 + 57
    times = row["microseconds"]["A100 SXM 80 GB"]
    assert times["operations"] == pytest.approx(1e6 * 569 * points / 19.5e12)
    # 108 multiprocessors of 64 float32 units at 1.41 GHz.
    assert times["L1"] == pytest.approx(1e6 * 344 * points / (108 * 128 * 1.41e9), rel=1e-3)
