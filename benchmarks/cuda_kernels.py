#!/usr/bin/env python3
"""Writes results/cuda_kernels.json: what the compiler says about the CUDA kernels, and what follows on paper.

    python -m benchmarks.cuda_kernels
    make tables

No GPU is needed, and nothing runs on one. nvcc compiles every .cu as `make cuda` does, against the installed
torch, and ptxas reports the registers and the static shared memory of every kernel. With the launch code's
threads and dynamic shared memory (``LAUNCHES``) follow the blocks that fit on a multiprocessor at once, and
the occupancy: their warps, as a share of those that it can hold. The rule and the numbers of ``LIMITS`` are
those of cuda_occupancy.h of the CUDA toolkit and of the CUDA C++ programming guide (technical specifications
per compute capability).

``paper`` is the roofline of deformable attention at the shapes of bench_ms_deform_attn.py. A point is one
bilinear sample (query, head, level, point) of D = 32 channels; s is the size of value's type in bytes.

- Memory: every input is read once and every output written once, value's gradient twice
  (``bench_ms_deform_attn.work``), as if the L2 cache held nothing of the kernel before. For a point these are
  12 bytes of location and weight, in the backward pass 12 of their gradients too, and its part of the rest.
- L1: what the registers get. The forward kernel loads four corners, 4 D s, and location and weight, 12. The
  backward kernel loads the same, and location and weight a second time, 12; for 16-bit types also the
  output's gradient, D s, which float32 keeps in registers. An L1 cache gives at most 128 bytes per clock: it
  is the memory of the multiprocessor's shared memory, 32 banks of 4 bytes.
- Reductions: the backward kernel adds 4 D float32 numbers to value's gradient in the L2 cache, 4 D 4 bytes.
  NVIDIA publishes no throughput of reductions, so that they set no bound here.
- Operations: 8 D + 22 forward and 16 D + 57 backward, in float32 (bench_ms_deform_attn.py).

The bound is the longest of the times that memory, L1 and operations take at the GPU's peaks, which NVIDIA's
data sheets give (``GPUS``). All points count as inside of their map. A measured time can only be longer.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import re
import runpy
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_ms_deform_attn import SHAPES, WIDTH, Shape, work

ROOT = Path(__file__).resolve().parent.parent
COMPILE = runpy.run_path(str(ROOT / "csrc" / "compile_cuda.py"))
LANES = 32  # of a warp
LEVELS = 4  # of the deformable attention whose shared memory is given: those of BEVFormer-base
CASES = ("spatial", "temporal")
DTYPES = (torch.float32, torch.bfloat16)
SIZES = {"double": 8, "float": 4, "Half": 2, "BFloat16": 2}  # bytes


@dataclasses.dataclass(frozen=True)
class Multiprocessor:
    """What a multiprocessor of a compute capability has."""

    shared: int
    """Bytes of shared memory, all of it given to blocks."""
    registers: int = 65536
    warps: int = 64
    blocks: int = 32
    partitions: int = 4
    """A warp's registers are in one of these parts of the register file."""
    register_unit: int = 256
    """Registers of a warp are allocated in multiples of this."""
    shared_unit: int = 128
    """Bytes of a block's shared memory are allocated in multiples of this."""
    reserved: int = 1024
    """Bytes of shared memory per block that the system takes."""


LIMITS = {
    "80": Multiprocessor(shared=164 * 1024),
    "90": Multiprocessor(shared=228 * 1024),
    "100": Multiprocessor(shared=228 * 1024),
}


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a kernel is launched."""

    threads: int
    """Of a block."""
    threads_as: str
    """The constant's name in the launch code."""
    shared: Callable[[list[str]], int] = lambda arguments: 0
    """Bytes of dynamic shared memory, by the kernel's template arguments."""
    shared_as: str = "0"
    """The same in the launch code."""


def _accumulate(*types: str) -> int:
    """Returns the bytes of accumulate_t: double if one of the types is, else float."""
    return SIZES["double"] if "double" in types else SIZES["float"]


def _workspace(quads: int) -> Callable[[list[str]], int]:
    """Returns Workspace::bytes: per thread int4 and `quads` times Quad<A>, and 12 bytes per level."""
    return lambda arguments: 128 * (16 + quads * 4 * _accumulate(arguments[0])) + 12 * LEVELS


_SUM = {"shared": lambda arguments: LANES * SIZES["double"]}  # the scratch memory of block_sum in float64
_SUM_AS = {**_SUM, "shared_as": "kLanes * sizeof(double)"}
LAUNCHES = {
    "ms_deform_attn/ms_deform_attn_cuda_forward.cu": {
        "forward_kernel": Launch(
            128, "kThreads", _workspace(1), "Workspace<accumulate_t<T>>::bytes(false, p.levels)"
        ),
    },
    "ms_deform_attn/ms_deform_attn_cuda_backward.cu": {
        **dict.fromkeys(
            ("backward_kernel", "reference_kernel"),
            Launch(128, "kThreads", _workspace(2), "Workspace<accumulate_t<T>>::bytes(true, p.levels)"),
        ),
        "largest_kernel": Launch(256, "kSweepThreads"),
        "from_fixed_kernel": Launch(256, "kSweepThreads"),
    },
    "box3d/box3d_cuda.cu": {
        **dict.fromkeys(
            ("prepare_kernel", "pairwise_kernel", "sort_kernel", "suppression_kernel"),
            Launch(256, "kThreads"),
        ),
        "scan_kernel": Launch(1024, "kScanThreads", lambda arguments: 65 * 8, "(kBits + 1) * sizeof(Word)"),
    },
    "distill_loss/absolute_means_cuda.cu": {
        "sums_kernel": Launch(
            256,
            "kThreads",
            lambda arguments: 256 * int(arguments[1]) * _accumulate(arguments[0]),
            "kThreads * V * sizeof(A)",
        ),
        "means_kernel": Launch(256, "kThreads"),
        "gradient_kernel": Launch(256, "kThreads"),
    },
    "distill_loss/bev_response_cuda.cu": {
        "forward_kernel": Launch(
            256,
            "kThreads",
            lambda arguments: LANES * 8 + (2 * 64 + 256 * 8) * SIZES[arguments[0]],
            "kLanes * sizeof(double) + (2 * kCells + kThreads * 8) * sizeof(A)",
        ),
        "finish_kernel": Launch(256, "kThreads", **_SUM_AS),
        "backward_kernel": Launch(256, "kThreads"),
    },
    "distill_loss/normalized_l2_cuda.cu": {
        "channels_kernel": Launch(512, "kThreads", **_SUM_AS),
        "finish_kernel": Launch(512, "kThreads", **_SUM_AS),
    },
    "distill_loss/pixel_weights_cuda.cu": {
        "draw_kernel": Launch(
            256,
            "kThreads",
            lambda arguments: 32 * 4 + 64 * 11 * 4,  # DrawnBox is 11 floats
            "32 * sizeof(float) + kBoxes * sizeof(DrawnBox)",
        ),
        "finish_kernel": Launch(256, "kThreads", **_SUM, shared_as="32 * sizeof(double)"),
    },
    "distill_loss/prediction_loss_cuda.cu": {
        **dict.fromkeys(("count_kernel", "loss_kernel", "finish_kernel"), Launch(256, "kThreads", **_SUM_AS)),
    },
    "distill_loss/scale_gradients_cuda.cu": {"scale_kernel": Launch(256, "kThreads")},
    "distill_loss/softmax_kl_cuda.cu": {
        "rows_kernel": Launch(
            256,
            "kThreads",
            lambda arguments: LANES * 8 + 256 * int(arguments[1]) * 5 * SIZES[arguments[0]],
            "kLanes * sizeof(double) + kThreads * kEach * sizeof(Statistics<A>)",
        ),
        "finish_kernel": Launch(256, "kThreads", **_SUM_AS),
    },
    "distill_loss/weighted_l2_cuda.cu": {
        "chunk_kernel": Launch(
            256, "kThreads", lambda arguments: 32 * _accumulate(*arguments), "32 * sizeof(A)"
        ),
        "finish_kernel": Launch(256, "kThreads", **_SUM, shared_as="32 * sizeof(double)"),
    },
}
"""Launches by source (under csrc/) and kernel."""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Peaks of a GPU by NVIDIA's data sheet."""

    name: str
    bytes_per_second: float
    """Of its memory."""
    flops_per_second: float
    """In float32, without tensor cores."""
    lanes: int
    """Float32 units of a multiprocessor."""

    @property
    def l1_bytes_per_second(self) -> float:
        """Returns what all L1 caches give: 128 bytes in the clock in which each unit makes 2 operations."""
        return self.flops_per_second / (2 * self.lanes) * 128


GPUS = (
    Gpu("A100 SXM 80 GB", 2.039e12, 19.5e12, 64),
    Gpu("H100 SXM 80 GB", 3.35e12, 67e12, 128),
    Gpu("H200 SXM", 4.8e12, 67e12, 128),
)


def main() -> None:
    """Compiles, and writes the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=COMPILE["RECORD"], help="the file to write")
    args = parser.parse_args()
    write(args.out, *compile_all())


def compile_all() -> tuple[str, dict[str, list[Any]]]:
    """Returns the version of nvcc, and the ``Kernel``s of compile_cuda.py by source."""
    nvcc, headers = COMPILE["find_nvcc"](), COMPILE["installed_headers"]()
    command = COMPILE["nvcc_command"](nvcc, COMPILE["NEWEST_STANDARD"])

    def compiled(source: Path) -> tuple[str, list[Any]]:
        print(f"compiling {source.name}", file=sys.stderr, flush=True)
        log = COMPILE["compile_one"](command, source, headers)
        return str(source.relative_to(ROOT)), COMPILE["read_kernels"](log)

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        return COMPILE["nvcc_version"](nvcc), dict(pool.map(compiled, COMPILE["cuda_sources"]()))


def write(out: Path, nvcc: str, kernels: dict[str, list[Any]]) -> None:
    """Writes the record, one line per kernel and per row of the roofline."""
    head = {"nvcc": nvcc, "torch": importlib.metadata.version("torch"), "levels": LEVELS}
    parts = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
    for key, rows in (("kernels", kernel_rows(kernels)), ("paper", paper())):
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        parts.append(f'"{key}": [\n  {lines}\n ]')
    out.write_text("{\n " + ",\n ".join(parts) + "\n}\n")


def kernel_rows(kernels: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Returns a row per kernel, with what it is on each architecture."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for source, members in sorted(kernels.items()):
        for kernel in sorted(members, key=lambda member: (member.name, int(member.arch))):
            launch, arguments = launch_of(source, kernel.name)
            dynamic = launch.shared(arguments)
            blocks, limit = resident_blocks(
                kernel.registers, launch.threads, kernel.shared + dynamic, kernel.arch
            )
            row = rows.setdefault(
                (source, kernel.name),
                {
                    **{"source": source, "kernel": kernel.name, "threads": launch.threads},
                    **{"dynamic_shared": dynamic, "sm": {}},
                },
            )
            row["sm"][kernel.arch] = {
                "registers": kernel.registers,
                "static_shared": kernel.shared,
                "spilled": kernel.spilled,
                "blocks": blocks,
                "occupancy": blocks * launch.threads / LANES / LIMITS[kernel.arch].warps,
                "limit": limit,
            }
    return list(rows.values())


def launch_of(source: str, kernel: str) -> tuple[Launch, list[str]]:
    """Returns the launch of a kernel and its template arguments, without namespaces.

    Raises:
        KeyError: ``LAUNCHES`` does not have the kernel.
    """
    name, _, arguments = kernel.partition("<")
    launches = LAUNCHES.get(source.removeprefix("csrc/"), {})
    if name not in launches:
        raise KeyError(
            f"{source} has the kernel {name}; LAUNCHES of benchmarks/cuda_kernels.py has {sorted(launches)} "
            "of that file: add its threads and dynamic shared memory from the launch code"
        )
    return launches[name], [word.strip() for word in re.split(r",(?![^<]*>)", arguments[:-1])]


def resident_blocks(registers: int, threads: int, shared: int, arch: str) -> tuple[int, str]:
    """Returns how many blocks fit on a multiprocessor, and what limits them.

    Args:
        registers: of a thread.
        threads: of a block.
        shared: bytes of a block, static and dynamic.
        arch: a key of ``LIMITS``.
    """
    has = LIMITS[arch]
    warps = -(-threads // LANES)
    of_warp = _rounded_up(registers * LANES, has.register_unit)
    by_registers = has.registers // has.partitions // of_warp * has.partitions // warps
    by = {
        "warps": has.warps // warps,
        "blocks": has.blocks,
        "registers": by_registers,
        "shared memory": has.shared // _rounded_up(shared + has.reserved, has.shared_unit),
    }
    limit = min(by, key=lambda name: by[name])
    return by[limit], limit


def _rounded_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def paper() -> list[dict[str, Any]]:
    """Returns the roofline of deformable attention: a row per case, type and pass."""
    return [
        paper_row(case, SHAPES[case], dtype, part)
        for case in CASES
        for dtype in DTYPES
        for part in ("forward", "backward")
    ]


def paper_row(case: str, shape: Shape, dtype: torch.dtype, part: str) -> dict[str, Any]:
    """Returns bytes and operations per point, their ratio, and the least microseconds by GPU and limit."""
    points, needed = shape.samples, work(shape, dtype)[part]
    l1 = l1_bytes(dtype, part)
    times = {
        gpu.name: {
            "memory": 1e6 * needed.bytes / gpu.bytes_per_second,
            "L1": 1e6 * l1 * points / gpu.l1_bytes_per_second,
            "operations": 1e6 * needed.flops / gpu.flops_per_second,
        }
        for gpu in GPUS
    }
    return {
        "case": case,
        "dtype": str(dtype).removeprefix("torch."),
        "part": part,
        "points": points,
        "memory_bytes_per_point": needed.bytes / points,
        "l1_bytes_per_point": l1,
        "reduced_bytes_per_point": 4 * WIDTH * 4 if part == "backward" else 0,
        "flops_per_point": needed.flops / points,
        "flops_per_memory_byte": needed.flops / needed.bytes,
        "flops_per_l1_byte": needed.flops / points / l1,
        "microseconds": times,
    }


def l1_bytes(dtype: torch.dtype, part: str) -> int:
    """Returns the bytes that a point of the forward or backward kernel loads into registers."""
    corners, coordinates = 4 * WIDTH * dtype.itemsize, 12
    if part == "forward":
        return corners + coordinates
    return corners + 2 * coordinates + (WIDTH * dtype.itemsize if dtype.itemsize == 2 else 0)


if __name__ == "__main__":
    main()
