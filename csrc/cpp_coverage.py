"""Prints which share of the C++ sources' lines the tests of the CPU kernels run, by gcov.

    python csrc/cpp_coverage.py [--fail-under 90]

What is built lies in build/coverage; the normal libraries stay as they are. The CUDA sources are not among
them: nothing runs them here but their emulation. Lines for AVX-512 alone (csrc/core/vec_avx512.h) count as
not run where the processor has none. Needs gcc, and gcovr (in bevkd2's extra ``dev``).
"""

import argparse
import subprocess
import sys

import sanitize

FOLDER = sanitize.ROOT / "build" / "coverage"
# -O1: some intrinsics need it. Atomic counts: threads of one kernel would lose each other's.
FLAGS = "-O1 -g1 --coverage -fprofile-update=atomic"
REPORT = FOLDER / "report.txt"


def main() -> int:
    """Builds, runs the tests with every instruction set, and prints; returns 1 below the required share."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--fail-under", type=float, default=0.0, metavar="PERCENT", help="default: %(default)s"
    )
    args = parser.parse_args()
    library = sanitize.build(FOLDER, FLAGS)
    for counts in FOLDER.rglob("*.gcda"):
        counts.unlink()
    for capability in sanitize.CAPABILITIES:
        environment = {**sanitize.environment_of(library), "BEVKD2_CPU_CAPABILITY": capability}
        print(f"coverage of C++: BEVKD2_CPU_CAPABILITY={capability}", flush=True)
        if subprocess.run(sanitize.pytest_command(library), cwd=sanitize.ROOT, env=environment).returncode:
            sys.exit("coverage of C++: a test failed; see above")
    words = ["gcovr", "--root", ".", "--object-directory", FOLDER, "--filter", "csrc/"]
    words += ["--merge-lines"]  # a line counts once, not once per template instance and instruction set
    words += ["--txt", REPORT, "--print-summary", "--fail-under-line", args.fail_under]
    command = [sys.executable, "-m", *map(str, words)]
    status = subprocess.run(command, cwd=sanitize.ROOT).returncode
    print(f"coverage of C++, by file: {REPORT.relative_to(sanitize.ROOT)}")
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
