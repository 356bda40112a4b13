#!/usr/bin/env python3
"""Runs our side of every benchmark once on tiny inputs, and the GPU tests: what compute-sanitizer watches.

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
# The kernels of all types, widths and modes, most of which no benchmark has. Left out: graphs, which need the
# caching allocator, that the sanitizers go without; and waiting, which is no question of memory.
TESTS = ["-m", "gpu", "--continue-on-collection-errors", str(OPS)]
TESTS += ["-k", "not graph and not never_waits_for and not do_not_wait"]


def main() -> int:
    """Prints what ran; returns the exit code."""
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
