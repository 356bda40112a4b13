"""Builds the CPU libraries with sanitizers, and runs the tests of their kernels.

    python csrc/sanitize.py [address] [thread]

``address``: AddressSanitizer and UndefinedBehaviorSanitizer over the tests of the ops and of KITTI's score,
with AVX2 and without. ``thread``: ThreadSanitizer over those that compute in several threads. Without an
argument both run. What is built lies in build/sanitize; the normal libraries stay as they are. The exit
status is 1 where a sanitizer reports anything or a test fails. Needs Linux and gcc.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "sanitize"
# -g1: lines in reports. The last -O and -g on the compiler's command line count, and these come last.
COMMON = "-O1 -g1 -fno-omit-frame-pointer"
FLAGS = {
    "address": f"{COMMON} -fsanitize=address,undefined -fno-sanitize-recover=all",
    "thread": f"{COMMON} -fsanitize=thread",
}
# Loaded before Python, which is built without sanitizers. libstdc++: AddressSanitizer looks for the function
# that throws exceptions when the program starts, and Python itself does not use it.
LIBRARIES = {
    "address": ["libasan.so", "libubsan.so", "libstdc++.so"],
    "thread": ["libtsan.so", "libstdc++.so"],
}
OPTIONS = {
    "address": {
        # Leaks: Python and torch keep what they allocate once until the process ends.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    },
    "thread": {
        # Modules without instrumentation are torch, OpenMP, numpy and Python: ThreadSanitizer does not see
        # their synchronisation. csrc/core/parallel.h tells it when torch's threads begin and end.
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1:exitcode=66",
    },
}
TESTS = ["tests/ops", "tests/kitti/test_ap.py"]
# Tests that run no kernel, or none of these: of builds, of other libraries and of torch's compiler; and those
# of tensors at odd addresses, which C++ leaves undefined and every processor that torch runs on reads.
LEFT_OUT = "emulated or compile or cuda or script or onnx or docs or export or library or build or misaligned"
SELECTED = {"address": f"not ({LEFT_OUT})", "thread": f"threads and not ({LEFT_OUT})"}


def build(kind: str) -> Path:
    """Builds the package in build/sanitize, libraries and Python files; returns the folder that holds it."""
    library = FOLDER / kind / "lib"
    command = [
        sys.executable,
        "setup.py",
        "build",
        "--build-base",
        str(FOLDER / kind),
        "--build-lib",
        str(library),
    ]
    environment = {**os.environ, "BEVKD2_CXX_FLAGS": FLAGS[kind], "FORCE_CUDA": "0"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return library


def preloaded(kind: str) -> str:
    """Returns the value of LD_PRELOAD."""
    found = []
    for name in LIBRARIES[kind]:
        command = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
        path = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
        if not path.is_absolute():
            sys.exit(f"sanitize: gcc has no {name}; install its sanitizer libraries")
        found.append(str(path.resolve()))
    return " ".join(found)


def environment_of(kind: str, library: Path) -> dict[str, str]:
    """Returns the environment of the tests."""
    return {
        **os.environ,
        **OPTIONS[kind],
        "LD_PRELOAD": preloaded(kind),
        "PYTHONPATH": str(library),
        "PYTHONMALLOC": "malloc",  # Python's own allocator hides the bounds of small arrays
        "OMP_NUM_THREADS": "2",
    }


def run_tests(kind: str, library: Path, capability: str) -> int:
    """Runs the selected tests with an instruction set; returns the exit status."""
    environment = {**environment_of(kind, library), "BEVKD2_CPU_CAPABILITY": capability}
    # Without random addresses: ThreadSanitizer of older compilers does not know where newer kernels put them.
    prefix = ["setarch", platform.machine(), "-R"] if shutil.which("setarch") else []
    where = [*prefix, sys.executable]
    used = [*where, "-c", "from bevkd2.ops import library; print(library.CPU_LIBRARY)"]
    found = subprocess.run(used, cwd=FOLDER, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    if library not in Path(found.stdout.strip()).parents:
        sys.exit(f"sanitize: Python imports {found.stdout.strip()}, not the library in {library}")
    pytest = [
        *where,
        "-m",
        "pytest",
        "-o",
        f"pythonpath={library} .",
        "-p",
        "no:cacheprovider",
        "--capture=sys",  # a report goes to the file descriptor, and the process ends there
        "-k",
        SELECTED[kind],
    ]
    print(f"sanitize: {kind}, BEVKD2_CPU_CAPABILITY={capability}", flush=True)
    return subprocess.run([*pytest, *TESTS], cwd=ROOT, env=environment, check=False).returncode


def main(kinds: list[str]) -> None:
    """Builds and tests; exits with 1 where anything is reported."""
    unknown = set(kinds) - set(FLAGS)
    if unknown:
        sys.exit(f"sanitize: unknown {', '.join(sorted(unknown))}; expected {' or '.join(FLAGS)}")
    failed = []
    for kind in kinds or FLAGS:
        library = build(kind)
        for capability in ("best", "default"):
            if run_tests(kind, library, capability):
                failed.append(f"{kind} ({capability})")
    if failed:
        sys.exit(f"sanitize: failed: {', '.join(failed)}; the reports are above")
    print("sanitize: nothing found")


if __name__ == "__main__":
    main(sys.argv[1:])
