"""Compiles the CUDA sources without a GPU, and prints registers, shared memory and spills of every kernel.

Every .cu compiles for each architecture against the headers of the installed torch and of torch 2.10, the
oldest that bevkd2 supports; the C++ sources that use torch compile against 2.10 too. A kernel that spills
registers is an error. So is a kernel that has other numbers in benchmarks/results/cuda_kernels.json (the
table of docs/benchmarks.md), if these are of the same nvcc and torch. The 2.10 headers are taken out of its
wheel on the first run (a download of 0.9 GB) and kept in build/. Nothing is linked and nothing runs. MAX_JOBS
limits the compilers that run at a time.

    python csrc/compile_cuda.py
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "results" / "cuda_kernels.json"
ARCHITECTURES = ("80", "90", "100")
OLDEST_TORCH = "2.10"
# What the two build extensions with (torch.utils.cpp_extension).
NEWEST_STANDARD, OLDEST_STANDARD = "-std=c++20", "-std=c++17"
INSTALLED = "the installed torch"
DEFINES = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA"]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What ptxas says about a kernel on an architecture."""

    name: str
    """With its template arguments, where c++filt is there to tell."""
    arch: str
    registers: int
    """Of a thread."""
    shared: int
    """Bytes of static shared memory of a block; dynamic shared memory is a matter of the launch."""
    spilled: int
    """Bytes that a thread stores in and loads from local memory because registers are too few."""


def find_nvcc() -> Path:
    """nvcc of CUDA_HOME, of PATH, or of pip's toolkit (nvidia-cuda-nvcc)."""
    candidates = [Path(os.environ["CUDA_HOME"]) / "bin/nvcc"] if "CUDA_HOME" in os.environ else []
    on_path = shutil.which("nvcc")
    candidates += [Path(on_path)] if on_path else []
    candidates += sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvcc"))
    for candidate in candidates:
        if candidate.exists():
            return candidate
    sys.exit(
        "compile_cuda: no nvcc in CUDA_HOME, on PATH or from pip. Install the CUDA toolkit, or "
        "`pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-cccl`."
    )


def installed_headers() -> Path:
    """The include directory of the torch that is installed here."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit(
            "compile_cuda: torch is not installed here; its headers are what the sources compile against."
        )
    return Path(spec.origin).parent / "include"


def oldest_headers() -> Path:
    """The include directory of the oldest supported torch, downloaded once."""
    kept = ROOT / "build" / f"torch-{OLDEST_TORCH}-headers"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as temporary:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            subprocess.run(
                [*pip, "--python-version=3.11", f"--dest={temporary}", f"torch=={OLDEST_TORCH}.*"], check=True
            )
            (wheel,) = Path(temporary).glob("torch-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.startswith("torch/include/")]
                archive.extractall(Path(temporary) / "unpacked", names)
            (Path(temporary) / "unpacked").rename(kept)
    return kept / "torch" / "include"


def torch_sources() -> list[Path]:
    """The C++ sources that use torch; the others (pybind11 modules) do not care which torch there is."""
    sources = sorted(ROOT.glob("csrc/**/*.cpp"))
    return [source for source in sources if "#include <pybind11/" not in source.read_text()]


def compile_one(command: list[str], source: Path, headers: Path) -> str:
    """Run a compiler on one source; what it printed. Leaves with its output where it fails."""
    with tempfile.TemporaryDirectory() as temporary:
        full = [
            *command,
            *DEFINES,
            "-O3",
            f"-I{headers}",
            f"-I{headers}/torch/csrc/api/include",
        ]
        full += ["-c", str(source), "-o", f"{temporary}/out.o"]
        result = subprocess.run(full, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(
            f"compile_cuda: {source.relative_to(ROOT)} does not compile:\n{result.stdout}{result.stderr}"
        )
    return result.stdout + result.stderr


def nvcc_version(nvcc: Path) -> str:
    """The version of nvcc, such as 13.0.88."""
    printed = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"V(\d+\.\d+\.\d+)", printed)
    if match is None:
        sys.exit(f"compile_cuda: {nvcc} --version prints no version such as V13.0.88:\n{printed}")
    return match[1]


def nvcc_command(nvcc: Path, standard: str) -> list[str]:
    """The command that compiles for all architectures and prints ptxas' report."""
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    return [str(nvcc), *targets, "-Xptxas=-v", "-Xcompiler=-fPIC,-fvisibility=hidden", standard]


def cuda_sources() -> list[Path]:
    """Every .cu."""
    return sorted(ROOT.glob("csrc/**/*.cu"))


def read_kernels(log: str) -> list[Kernel]:
    """The kernels of ptxas -v."""
    pattern = (
        r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'.*?(?P<spill>\d+) bytes spill "
        r"stores, (?P<load>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<more>[^\n]*)"
    )
    kernels = []
    for kernel in re.finditer(pattern, log, re.DOTALL):
        shared = re.search(r"(\d+) bytes smem", kernel["more"])
        kernels.append(
            Kernel(
                demangle(kernel["name"]),
                kernel["arch"],
                int(kernel["registers"]),
                int(shared[1]) if shared else 0,
                int(kernel["spill"]) + int(kernel["load"]),
            )
        )
    return kernels


def report_kernels(kernels: list[Kernel]) -> list[str]:
    """Print one line a kernel and architecture; the lines of those that spill."""
    spilling = []
    for kernel in kernels:
        line = f"    sm_{kernel.arch:<4} {kernel.registers:>3} registers, {kernel.shared:>5} bytes shared, "
        line += f"{kernel.spilled:>3} bytes spilled  {kernel.name}"
        print(line)
        if kernel.spilled:
            spilling.append(line)
    return spilling


def changed_since(record: Path, version: str, torch: str, kernels: dict[str, list[Kernel]]) -> list[str]:
    """Kernels with other numbers than a record of the same nvcc and torch has.

    Args:
        record: a file that ``python -m benchmarks.cuda_kernels`` wrote.
        version: of nvcc.
        torch: version of the torch that the kernels compiled against.
        kernels: by their source, as the record names it.

    Returns:
        A line for each; none if the record is of another compiler or torch.
    """
    content = json.loads(record.read_text())
    if (content["nvcc"], content["torch"]) != (version, torch):
        return []
    recorded = {
        (row["source"], row["kernel"], arch): (on["registers"], on["static_shared"], on["spilled"])
        for row in content["kernels"]
        for arch, on in row["sm"].items()
    }
    found = {
        (source, kernel.name, kernel.arch): (kernel.registers, kernel.shared, kernel.spilled)
        for source, members in kernels.items()
        for kernel in members
    }
    return [
        f"    {source}: {name}, sm_{arch}"
        for source, name, arch in sorted(recorded.keys() | found.keys())
        if recorded.get((source, name, arch)) != found.get((source, name, arch))
    ]


def demangle(name: str) -> str:
    """The kernel's name with its template arguments, where c++filt is there to tell."""
    if shutil.which("c++filt") is None:
        return name
    readable = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    match = re.search(r"(\w+_kernel)(<.*?>)?\(", readable)
    return f"{match[1]}{re.sub(r'[a-zA-Z_0-9]+::', '', match[2] or '')}" if match else readable


def main() -> None:
    """Compile everything, newest headers first. Leaves with an error where a kernel spills."""
    nvcc = find_nvcc()
    print(f"nvcc: {nvcc}; architectures: {', '.join(ARCHITECTURES)}")
    installed, oldest = installed_headers(), oldest_headers()
    compiler = os.environ.get("CXX", "c++")
    cpp_command = [compiler, OLDEST_STANDARD, "-fPIC", "-fvisibility=hidden"]
    jobs = [
        (nvcc_command(nvcc, standard), source, headers, title)
        for title, headers, standard in (
            (INSTALLED, installed, NEWEST_STANDARD),
            (f"torch {OLDEST_TORCH}", oldest, OLDEST_STANDARD),
        )
        for source in cuda_sources()
    ]
    jobs += [(cpp_command, source, oldest, f"torch {OLDEST_TORCH}") for source in torch_sources()]
    spilling: list[str] = []
    kernels: dict[str, list[Kernel]] = {}
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        logs = pool.map(lambda job: compile_one(*job[:3]), jobs)
        for (_, source, _, title), log in zip(jobs, logs, strict=True):
            print(f"{source.relative_to(ROOT)}: compiles against {title}", flush=True)
            found = read_kernels(log)
            spilling += report_kernels(found)
            if title == INSTALLED:
                kernels[str(source.relative_to(ROOT))] = found
    if spilling:
        lines = "\n".join(dict.fromkeys(spilling))
        sys.exit(
            "compile_cuda: kernels keep registers in local memory; give them more registers "
            f"(__launch_bounds__) or less to hold:\n{lines}"
        )
    changed = changed_since(RECORD, nvcc_version(nvcc), importlib.metadata.version("torch"), kernels)
    if changed:
        sys.exit(
            f"compile_cuda: {RECORD.relative_to(ROOT)} has other numbers of these kernels. Run `python -m "
            "benchmarks.cuda_kernels` and `make tables`:\n" + "\n".join(changed)
        )


if __name__ == "__main__":
    main()
