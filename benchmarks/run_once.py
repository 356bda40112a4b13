#!/usr/bin/env python3
"""Runs our op of every benchmark once on tiny inputs, and the GPU tests, for compute-sanitizer.

compute-sanitizer --tool racecheck python -m benchmarks.run_once --device cuda --tests
"""

import argparse
import importlib
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.bench import FAMILIES
from benchmarks.harness import Options, Untimed

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
    parser.add_argument("--tests", action="store_true", help="the ops' GPU tests, too")
    args = parser.parse_args()
    options = Options(args.device, quick=True)
    for family in args.families:
        for contest in importlib.import_module(f"benchmarks.{family}").contests(options):
            ours = contest.make()[0]
            result = ours.run(Untimed(options.device))
            assert torch.isfinite(result).all(), f"{contest.case}, {contest.dtype}: {result}"
            print(f"{contest.family}: {contest.case}, {contest.dtype}")
    return pytest.main(TESTS) if args.tests else 0


if __name__ == "__main__":
    sys.exit(main())
