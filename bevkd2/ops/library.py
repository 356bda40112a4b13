"""Loads the compiled ops. Importing this module defines ``torch.ops.bevkd2``."""

import os
from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parent.parent
CPU_LIBRARY = _PACKAGE / "_C.abi3.so"
CUDA_LIBRARY = _PACKAGE / "_C_cuda.abi3.so"
# Values of BEVKD2_CPU_CAPABILITY, which csrc/core/cpu_dispatch.h reads.
CPU_CAPABILITIES = ("default", "avx2", "avx512")


def load(cpu_library: Path, cuda_library: Path) -> bool:
    """Loads the compiled libraries.

    Args:
        cpu_library: path of the library with the schemas and the CPU kernels, which must exist.
        cuda_library: path of the library with the CUDA kernels, loaded if it exists and torch has CUDA.

    Returns:
        Whether the CUDA kernels were loaded.

    Raises:
        ImportError: the CPU library is missing or does not load; the message says how to build it.
        ValueError: ``BEVKD2_CPU_CAPABILITY`` in the environment is none of ``CPU_CAPABILITIES``.
    """
    capability = os.environ.get("BEVKD2_CPU_CAPABILITY")
    if capability not in (None, *CPU_CAPABILITIES):
        raise ValueError(
            f"BEVKD2_CPU_CAPABILITY is '{capability}'; expected {', '.join(CPU_CAPABILITIES)}, or unset it "
            "for the best that this processor has"
        )
    if not cpu_library.exists():
        raise ImportError(
            f"bevkd2's compiled ops are missing: {cpu_library} does not exist. Build them in the source tree "
            "with `make build`, or `pip install --no-build-isolation -e .`."
        )
    _load_one(cpu_library)
    if torch.version.cuda is None or not cuda_library.exists():
        return False
    _load_one(cuda_library)
    return True


def _load_one(path: Path) -> None:
    """Loads one library, and says how to build it if it does not load."""
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"bevkd2's compiled ops do not load with torch {torch.__version__}: {error}. Build them again "
            "with `make build`, or `pip install --no-build-isolation -e .`; they need torch >= 2.10."
        ) from error


HAS_CUDA = load(CPU_LIBRARY, CUDA_LIBRARY)
