#!/usr/bin/env python3
"""Runs our op of every benchmark once on tiny inputs, and the GPU tests, for compute-sanitizer.

    python -m benchmarks.run_once --device cuda --compare
    compute-sanitizer --tool racecheck python -m benchmarks.run_once --device cuda --tests

With --compare the baselines run too, and their results must be ours. pytest is needed for --tests alone.
"""

import argparse
import importlib
import sys
from pathlib import Path

import torch

from benchmarks.bench import FAMILIES
from benchmarks.harness import Options, Untimed, check_equal

OPS = Path(__file__).resolve().parent.parent / "tests" / "ops"
# The kernels of all dtypes, widths and modes, most of which no benchmark has. Excluded are CUDA graphs, which
# need the caching allocator, which is off under the sanitizers, and the tests of device waits, which are not
# about memory.
TESTS = ["-m", "gpu", "--continue-on-collection-errors", str(OPS)]
TESTS += ["-k", "not graph and not never_waits_for and not do_not_wait"]


def main() -> int:
    """Prints the cases that ran; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--compare", action="store_true", help="with the results of the baselines")
    parser.add_argument("--tests", action="store_true", help="the ops' GPU tests, too")
    args = parser.parse_args()
    options = Options(args.device, quick=True)
    for family in args.families:
        for contest in importlib.import_module(f"benchmarks.{family}").contests(options):
            contestants = contest.make()[: None if args.compare else 1]
            results = {found.name: found.run(Untimed(options.device)) for found in contestants}
            ours = results[contestants[0].name]
            assert torch.isfinite(ours).all(), f"{contest.case}, {contest.dtype}: {ours}"
            check_equal(contest, results)
            print(f"{contest.family}: {contest.case}, {contest.dtype}")
    if not args.tests:
        return 0
    import pytest  # here: everything else runs without it

    return pytest.main(TESTS)


if __name__ == "__main__":
    sys.exit(main())
