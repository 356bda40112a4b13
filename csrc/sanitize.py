"""Builds the CPU libraries with sanitizers, and runs the tests of their kernels.

    python csrc/sanitize.py [address] [thread]

``address``: AddressSanitizer and UndefinedBehaviorSanitizer over the tests of the ops and of KITTI's score,
with AVX-512, AVX2 and plain C++. ``thread``: ThreadSanitizer over those that compute in several threads.
Without an argument both run. What is built lies in build/sanitize; the normal libraries stay as they are. The
exit status is 1 where a sanitizer reports anything or a test fails. Needs Linux and gcc.
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
CAPABILITIES = ("avx512", "avx2", "default")  # of BEVKD2_CPU_CAPABILITY; at most what the processor has
SELECTED = {"address": f"not ({LEFT_OUT})", "thread": f"threads and not ({LEFT_OUT})"}


def build(folder: Path, flags: str) -> Path:
    """Builds the package in a folder, libraries and Python files; returns the folder in it to import from."""
    library = folder / "lib"
    command = [
        sys.executable,
        "setup.py",
        "build",
        "--build-base",
        str(folder),
        "--build-lib",
        str(library),
    ]
    environment = {**os.environ, "BEVKD2_CXX_FLAGS": flags, "FORCE_CUDA": "0"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return library


def build_sanitized(kind: str) -> Path:
    """Builds the package with the sanitizers of ``address`` or ``thread``."""
    return build(FOLDER / kind, FLAGS[kind])


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


def environment_of(library: Path) -> dict[str, str]:
    """Returns the environment of tests that import the package from ``library``."""
    return {**os.environ, "PYTHONPATH": str(library), "OMP_NUM_THREADS": "2"}


def pytest_command(library: Path, selected: str = SELECTED["address"]) -> list[str]:
    """Returns the command that runs the selected tests of the package in ``library``."""
    return [
        *(sys.executable, "-m", "pytest"),
        *("-o", f"pythonpath={library} ."),
        *("-p", "no:cacheprovider"),
        "--capture=sys",  # a report goes to the file descriptor, and the process ends there
        *("-k", selected),
        *TESTS,
    ]


def run_tests(kind: str, library: Path, capability: str, results: Path | None = None) -> int:
    """Runs the selected tests with an instruction set; returns pytest's status, and writes ``results``, a
    JUnit file, if it is given."""
    environment = {
        **environment_of(library),
        **OPTIONS[kind],
        "LD_PRELOAD": preloaded(kind),
        "PYTHONMALLOC": "malloc",  # Python's own allocator hides the bounds of small arrays
        "BEVKD2_CPU_CAPABILITY": capability,
    }
    # Without random addresses: ThreadSanitizer of older compilers does not know where newer kernels put them.
    prefix = ["setarch", platform.machine(), "-R"] if shutil.which("setarch") else []
    used = [*prefix, sys.executable, "-c", "from bevkd2.ops import library; print(library.CPU_LIBRARY)"]
    found = subprocess.run(used, cwd=FOLDER, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    if library not in Path(found.stdout.strip()).parents:
        sys.exit(f"sanitize: Python imports {found.stdout.strip()}, not the library in {library}")
    command = [*prefix, *pytest_command(library, SELECTED[kind])]
    if results is not None:
        command.append(f"--junitxml={results}")
    print(f"sanitize: {kind}, BEVKD2_CPU_CAPABILITY={capability}", flush=True)
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main(kinds: list[str]) -> None:
    """Builds and tests; exits with 1 where anything is reported."""
    unknown = set(kinds) - set(FLAGS)
    if unknown:
        sys.exit(f"sanitize: unknown {', '.join(sorted(unknown))}; expected {' or '.join(FLAGS)}")
    failed = []
    for kind in kinds or FLAGS:
        library = build_sanitized(kind)
        for capability in CAPABILITIES:
            if run_tests(kind, library, capability):
                failed.append(f"{kind} ({capability})")
    if failed:
        sys.exit(f"sanitize: failed: {', '.join(failed)}; the reports are above")
    print("sanitize: nothing found")


if __name__ == "__main__":
    main(sys.argv[1:])
