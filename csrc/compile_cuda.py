"""Compiles the CUDA sources without a GPU, and prints registers and spills of every kernel.

Every .cu compiles for each architecture against the headers of the installed torch and of torch 2.10, the
oldest that bevkd2 supports; the C++ sources that use torch compile against 2.10 too. A kernel that spills
registers is an error. The 2.10 headers are taken out of its wheel on the first run (a download of 0.9 GB) and
kept in build/. Nothing is linked and nothing runs. MAX_JOBS limits the compilers that run at a time.

    python csrc/compile_cuda.py
"""

import importlib.util
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
ARCHITECTURES = ("80", "90", "100")
OLDEST_TORCH = "2.10"
# What the two build extensions with (torch.utils.cpp_extension).
NEWEST_STANDARD, OLDEST_STANDARD = "-std=c++20", "-std=c++17"
DEFINES = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA"]


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


def report_kernels(log: str) -> list[str]:
    """Print one line a kernel and architecture from ptxas -v; the lines of those that spill."""
    pattern = (
        r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'.*?(?P<spill>\d+) bytes spill "
        r"stores, (?P<load>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
    )
    spilling = []
    for kernel in re.finditer(pattern, log, re.DOTALL):
        spills = int(kernel["spill"]) + int(kernel["load"])
        line = f"    sm_{kernel['arch']:<4} {kernel['registers']:>3} registers, {spills:>3} bytes spilled"
        line += f"  {demangle(kernel['name'])}"
        print(line)
        if spills:
            spilling.append(line)
    return spilling


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
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    nvcc_command = [str(nvcc), *targets, "-Xptxas=-v", "-Xcompiler=-fPIC,-fvisibility=hidden"]
    print(f"nvcc: {nvcc}; architectures: {', '.join(ARCHITECTURES)}")
    installed, oldest = installed_headers(), oldest_headers()
    compiler = os.environ.get("CXX", "c++")
    cpp_command = [compiler, OLDEST_STANDARD, "-fPIC", "-fvisibility=hidden"]
    jobs = [
        ([*nvcc_command, standard], source, headers, title)
        for title, headers, standard in (
            ("the installed torch", installed, NEWEST_STANDARD),
            (f"torch {OLDEST_TORCH}", oldest, OLDEST_STANDARD),
        )
        for source in sorted(ROOT.glob("csrc/**/*.cu"))
    ]
    jobs += [(cpp_command, source, oldest, f"torch {OLDEST_TORCH}") for source in torch_sources()]
    spilling = []
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        logs = pool.map(lambda job: compile_one(*job[:3]), jobs)
        for (_, source, _, title), log in zip(jobs, logs, strict=True):
            print(f"{source.relative_to(ROOT)}: compiles against {title}", flush=True)
            spilling += report_kernels(log)
    if spilling:
        kernels = "\n".join(dict.fromkeys(spilling))
        sys.exit(
            "compile_cuda: kernels keep registers in local memory; give them more registers "
            f"(__launch_bounds__) or less to hold:\n{kernels}"
        )


if __name__ == "__main__":
    main()
