"""What bevkd2 compiles and packs. The metadata are in pyproject.toml.

Two libraries on the LibTorch stable ABI, loaded with torch.ops.load_library:
  bevkd2/_C.abi3.so       every schema, and the CPU kernels; always built
  bevkd2/_C_cuda.abi3.so  the CUDA kernels; see cuda_decision()
and a module without torch, for one version of Python as all of pybind11's are:
  bevkd2/_kitti_eval.*.so KITTI's score

Environment: FORCE_CUDA=1 builds the CUDA library without a visible GPU, FORCE_CUDA=0 never builds it,
TORCH_CUDA_ARCH_LIST replaces the architectures below, MAX_JOBS limits the compiler processes, and
BEVKD2_CXX_FLAGS holds further flags for the C++ compiler and the linker (csrc/sanitize.py).
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

# torch 2.10: the first release whose stable ABI has everything that csrc/ uses.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# -ffp-contract=off: a product and a sum become one operation only where the source says so, so that two
# copies of a kernel that the compiler optimises differently still agree bit for bit.
CXX_FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", STABLE_ABI]
NVCC_FLAGS = ["-O3", "-Xcompiler=-fvisibility=hidden", STABLE_ABI, "-DUSE_CUDA"]
# A100, H100/H200, B200; newer ones run the last one's PTX.
CUDA_ARCHITECTURES = "8.0;9.0;10.0+PTX"
CPU_SOURCES = [
    "csrc/bindings.cpp",
    "csrc/box3d/box3d_cpu.cpp",
    "csrc/distill_loss/absolute_means_cpu.cpp",
    "csrc/distill_loss/bev_response_cpu.cpp",
    "csrc/distill_loss/normalized_l2_cpu.cpp",
    "csrc/distill_loss/pixel_weights_cpu.cpp",
    "csrc/distill_loss/prediction_loss_cpu.cpp",
    "csrc/distill_loss/softmax_kl_cpu.cpp",
    "csrc/distill_loss/weighted_l2_cpu.cpp",
    "csrc/ms_deform_attn/ms_deform_attn_cpu.cpp",
]
CUDA_SOURCES = [
    "csrc/box3d/box3d_cuda.cu",
    "csrc/distill_loss/absolute_means_cuda.cu",
    "csrc/distill_loss/bev_response_cuda.cu",
    "csrc/distill_loss/normalized_l2_cuda.cu",
    "csrc/distill_loss/pixel_weights_cuda.cu",
    "csrc/distill_loss/prediction_loss_cuda.cu",
    "csrc/distill_loss/scale_gradients_cuda.cu",
    "csrc/distill_loss/softmax_kl_cuda.cu",
    "csrc/distill_loss/weighted_l2_cuda.cu",
    "csrc/ms_deform_attn/ms_deform_attn_cuda.cu",
    "csrc/ms_deform_attn/ms_deform_attn_cuda_backward.cu",
    "csrc/ms_deform_attn/ms_deform_attn_cuda_forward.cu",
]
# Folders of files without code that a wheel carries inside the package (bevkd2/config/shipped.py).
SHIPPED = {"bevkd2.configs": "configs", "bevkd2.assets": "assets"}
# A change of one rebuilds, without ninja too.
HEADERS = sorted(str(header) for kind in ("*.h", "*.cuh") for header in Path("csrc").rglob(kind))
COMMANDS_THAT_COMPILE = {
    "build",
    "build_ext",
    "bdist_wheel",
    "editable_wheel",
    "develop",
    "install",
    "bdist_egg",
}


def say(message: str) -> None:
    print(f"bevkd2 setup: {message}", file=sys.stderr)


def cuda_decision(torch: object, cuda_home: str | None) -> tuple[bool, str]:
    """Whether to build the CUDA library, and why. That some nvcc is on PATH is never a reason."""
    forced = os.environ.get("FORCE_CUDA")
    if forced == "0":
        return False, "FORCE_CUDA=0"
    if torch.version.cuda is None:
        if forced == "1":
            sys.exit("bevkd2 setup: FORCE_CUDA=1, but this torch has no CUDA; install a CUDA build of torch.")
        return False, "this torch is built without CUDA"
    if forced == "1":
        if cuda_home is None:
            sys.exit(
                "bevkd2 setup: FORCE_CUDA=1, but there is no nvcc; install the CUDA toolkit or set CUDA_HOME."
            )
        return True, "FORCE_CUDA=1"
    if not torch.cuda.is_available():
        return False, "no GPU is visible (FORCE_CUDA=1 builds it anyway)"
    if cuda_home is None:
        return False, "a GPU is visible, but there is no nvcc; install the CUDA toolkit or set CUDA_HOME"
    found = nvcc_major(cuda_home)
    if found != torch.version.cuda.split(".")[0]:
        return (
            False,
            f"nvcc is CUDA {found}, torch is built for {torch.version.cuda} (FORCE_CUDA=1 overrides)",
        )
    return True, "a GPU and a matching nvcc are there"


def nvcc_major(cuda_home: str) -> str:
    report = subprocess.run(
        [f"{cuda_home}/bin/nvcc", "--version"], capture_output=True, text=True, check=True
    ).stdout
    return report.split("release ")[1].split(".")[0]


def extensions() -> tuple[list, dict]:
    """ext_modules and cmdclass."""
    try:
        import pybind11
        import torch
        from torch.utils import cpp_extension
    except ModuleNotFoundError as error:
        sys.exit(
            f"bevkd2 setup: {error.name} is not installed here, and the extensions compile against it. "
            "Install torch >= 2.10 and pybind11 first, then run: pip install --no-build-isolation -e ."
        )
    further = os.environ.get("BEVKD2_CXX_FLAGS", "").split()
    modules = [
        cpp_extension.CppExtension(
            "bevkd2._C",
            CPU_SOURCES,
            depends=HEADERS,
            extra_compile_args={"cxx": [*CXX_FLAGS, *further]},
            extra_link_args=further,
            py_limited_api=True,
        ),
        Extension(
            "bevkd2._kitti_eval",
            ["csrc/kitti_eval/module.cpp"],
            depends=HEADERS,
            include_dirs=[pybind11.get_include()],
            extra_compile_args=["-O3", "-g0", "-fvisibility=hidden", *further],
            extra_link_args=further,
            language="c++",
        ),
    ]
    cuda, reason = cuda_decision(torch, cpp_extension.CUDA_HOME)
    say(f"torch {torch.__version__}; CPU library: yes; CUDA library: {'yes' if cuda else 'no'} ({reason})")
    if cuda:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
        say(f"CUDA architectures: {os.environ['TORCH_CUDA_ARCH_LIST']}")
        modules.append(
            cpp_extension.CUDAExtension(
                "bevkd2._C_cuda",
                CUDA_SOURCES,
                depends=HEADERS,
                extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
                py_limited_api=True,
            )
        )
    return modules, {"build_ext": cpp_extension.BuildExtension}


def main() -> None:
    # Metadata and source distributions need no torch.
    ext_modules, cmdclass = extensions() if COMMANDS_THAT_COMPILE & set(sys.argv) else ([], {})
    setup(
        packages=[*find_packages(include=["bevkd2", "bevkd2.*"]), *SHIPPED],
        package_dir=SHIPPED,
        package_data={
            "bevkd2": ["py.typed", "*.pyi"],
            "bevkd2.report": ["*.html", "*.css", "*.js"],
            "bevkd2.configs": ["**/*.yaml"],
            "bevkd2.assets": ["*.safetensors"],
        },
        ext_modules=ext_modules,
        cmdclass=cmdclass,
    )


if __name__ == "__main__":
    main()
