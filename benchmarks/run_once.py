#!/usr/bin/env python3
"""Runs our side of every benchmark once on tiny inputs: what compute-sanitizer watches.

compute-sanitizer --tool racecheck python benchmarks/run_once.py --device cuda
"""

import argparse
import importlib

import torch
from bench import FAMILIES
from harness import Options, Untimed


def main() -> None:
    """Prints what ran."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    args = parser.parse_args()
    options = Options(args.device, quick=True)
    for family in args.families:
        for contest in importlib.import_module(family).contests(options):
            ours = contest.make()[0]
            result = ours.run(Untimed(options.device))
            assert torch.isfinite(result).all(), f"{contest.case}, {contest.dtype}: {result}"
            print(f"{contest.family}: {contest.case}, {contest.dtype}")


if __name__ == "__main__":
    main()
