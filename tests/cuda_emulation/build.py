"""Compiles the CUDA sources for the CPU, as torch.ops.bevkd2_emulated. See README.md."""

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
    """Compile the sources, unless the library of the same sources is there.

    They are one translation unit: torch's headers take most of the time of each.

    Args:
        folder: holds the library, by hash of all that goes into it.

    Returns:
        The library, to be loaded after `import torch`.

    Raises:
        RuntimeError: a source does not compile; the message holds the compiler's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = [ROOT / "csrc" / "bindings.cpp", *cuda_sources()]
    headers = [h for kind in ("*.h", "*.cuh") for h in sorted((ROOT / "csrc").rglob(kind))]
    contents = [path.read_bytes() for path in (*headers, *sorted(HERE.glob("*.h")), *sources)]
    version = f"{torch.__version__} {compiler()} {FLAGS}"
    library = folder / f"emulated-{digest(version.encode(), *contents)}.so"
    if not library.exists():
        whole = folder / "emulated.cpp"
        whole.write_text("".join(f'#include "{source}"\n' for source in sources))
        package = Path(torch.__file__).parent
        include = package / "include"
        paths = [f"-I{HERE}", f"-I{include}", f"-I{include}/torch/csrc/api/include", f"-L{package}/lib"]
        execute([*FLAGS, *paths, "-shared", str(whole), "-ltorch", "-ltorch_cpu", "-lc10"], library)
    return library


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
