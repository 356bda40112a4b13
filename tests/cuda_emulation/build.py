"""Compiles the CUDA sources for the CPU, as torch.ops.bevkd2_emulated. See README.md."""

import concurrent.futures
import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# The macro renames the C++ namespace and the namespace of the ops alike.
FLAGS = [
    "-std=c++20",
    "-O1",
    "-g0",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE",
]
FLAGS += ["-Dbevkd2=bevkd2_emulated", "-DBEVKD2_CUDA_EMULATION", "-DTORCH_TARGET_VERSION=0x020a000000000000"]


def compiler() -> str | None:
    """The C++ compiler, if there is one."""
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


def cuda_sources() -> list[Path]:
    """CUDA_SOURCES of setup.py."""
    spec = importlib.util.spec_from_file_location("bevkd2_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    return [ROOT / source for source in setup.CUDA_SOURCES]


def build(folder: Path) -> Path:
    """Compile what changed since the last time.

    Args:
        folder: holds the objects and the library, by hash of all that goes into them.

    Returns:
        The library, to be loaded after `import torch`.

    Raises:
        RuntimeError: a source does not compile; the message holds the compiler's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = [ROOT / "csrc" / "bindings.cpp", *cuda_sources()]
    with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        objects = list(pool.map(lambda source: compile_one(source, folder), sources))
    library = folder / f"emulated-{digest(*(o.name.encode() for o in objects))}.so"
    if not library.exists():
        libraries = Path(torch.__file__).parent / "lib"
        execute(["-shared", *map(str, objects), f"-L{libraries}", "-ltorch", "-ltorch_cpu", "-lc10"], library)
    return library


def compile_one(source: Path, folder: Path) -> Path:
    headers = [h for kind in ("*.h", "*.cuh") for h in sorted((ROOT / "csrc").rglob(kind))]
    contents = [path.read_bytes() for path in (*headers, *sorted(HERE.glob("*.h")), source)]
    version = f"{torch.__version__} {compiler()} {FLAGS}"
    key = digest(version.encode(), *contents)
    compiled = folder / f"{source.parent.name}-{source.stem}-{key}.o"
    if not compiled.exists():
        include = Path(torch.__file__).parent / "include"
        paths = [f"-I{HERE}", f"-I{include}", f"-I{include}/torch/csrc/api/include"]
        execute([*FLAGS, *paths, "-x", "c++", "-c", str(source)], compiled)
    return compiled


def execute(arguments: list[str], to: Path) -> None:
    """Run the compiler; `to` appears at once and whole."""
    command = compiler()
    assert command is not None
    unfinished = to.with_suffix(f".{os.getpid()}{to.suffix}")
    result = subprocess.run([command, *arguments, "-o", str(unfinished)], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"the CUDA emulation does not build {to.name}:\n{result.stderr}")
    unfinished.replace(to)


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]
