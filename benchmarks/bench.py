#!/usr/bin/env python3
"""Compares all ops with their baselines, and writes results/<machine>.json and results/<machine>.md.

    python -m benchmarks.bench [--families bench_distill_loss] [--cases spatial] [--threads N] [--quick]
    python -m benchmarks.bench --device cuda

Every row is a ratio of medians of one run, in which the implementations run in turns (harness.py). If a ratio
is lower than required, or the memory larger than allowed, the table marks the row and the exit status is 1.
Progress is printed to stderr.
"""

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Contest, Options, chosen, compare
from benchmarks.limits import Limits, measure_limits
from benchmarks.machine import machine, machine_name
from benchmarks.report import Row, make_rows, steps_table, table

FOLDER = Path(__file__).resolve().parent
FAMILIES = ("bench_ms_deform_attn", "bench_ragged", "bench_distill_loss", "bench_box3d")


def main(families: tuple[str, ...] = FAMILIES, out: Path = FOLDER / "results") -> int:
    """Runs the families and writes the results, by default into ``out``; returns the exit status."""
    args = _arguments(families, out)
    torch.set_num_threads(args.threads)
    options = Options(args.device, args.quick, args.threads, tuple(args.cases))
    on, limits = machine(), measure_limits(args.device, quick=args.quick)
    memory = _peak_memory(args.families, options)
    rows: list[Row] = []
    for family in args.families:
        for contest in chosen(importlib.import_module(f"benchmarks.{family}").contests(options), options):
            rows += run_contest(contest, options, limits, args.budget, memory)
    steps = _steps(args) if args.steps else {}
    missed = list(dict.fromkeys(text for row in rows for text in row.missed))
    report = {
        "machine": on,
        "limits": dataclasses.asdict(limits),
        "rows": [{**dataclasses.asdict(row), "missed": row.missed} for row in rows],
        "missed": missed,
        "steps": steps,
    }
    _write(args, report, rows)
    for text in missed:
        print(f"missed: {text}", file=sys.stderr)
    return 1 if missed else 0


def _arguments(families: tuple[str, ...], out: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", choices=families, default=list(families))
    parser.add_argument("--cases", nargs="+", default=[], help="what a case's name begins with")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--budget", type=float, default=5.0, help="seconds of a contest's rounds")
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes, nothing required: tests the scripts"
    )
    parser.add_argument("--steps", action="store_true", help="bench_train_step.py, too, in both sizes")
    parser.add_argument("--out", type=Path, default=out, help="folder of the two files")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU is visible to torch here")
    return args


def run_contest(
    contest: Contest, options: Options, limits: Limits, budget: float, memory: dict[str, dict[str, float]]
) -> list[Row]:
    """Returns the rows of one case; its inputs are freed afterwards."""
    begin = time.perf_counter()
    times = compare(contest, options, budget)
    print(f"{time.perf_counter() - begin:6.1f} s  {contest.case}, {contest.dtype}", file=sys.stderr)
    return make_rows(contest, times, memory.get(f"{contest.case} {contest.dtype}", {}), limits)


def _peak_memory(families: list[str], options: Options) -> dict[str, dict[str, float]]:
    command = [sys.executable, "-m", "benchmarks.peak_memory", *families, "--device", options.device]
    command += ["--threads", str(options.threads), *(["--quick"] if options.quick else [])]
    command += ["--cases", *options.cases] if options.cases else []
    # Every block is mapped separately (mallopt(3)): freed memory must not hide later allocations.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    begin = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    print(f"{time.perf_counter() - begin:6.1f} s  peak memory", file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _steps(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the output of bench_train_step.py, by size."""
    found = {}
    for size in ("demo", "tiny"):
        command = [sys.executable, "-m", "benchmarks.bench_train_step", "--size", size]
        command += ["MODEL.DEVICE", args.device]
        begin = time.perf_counter()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(f"{time.perf_counter() - begin:6.1f} s  distillation step, {size}", file=sys.stderr)
        found[size] = json.loads(done.stdout)
    return found


def _write(args: argparse.Namespace, report: dict[str, Any], rows: list[Row]) -> None:
    text = heading(report) + "\n" + table(rows)
    if report["steps"]:
        text += "\n" + steps_table(report["steps"])
    args.out.mkdir(parents=True, exist_ok=True)
    name = machine_name(args.device)
    (args.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / f"{name}.md").write_text(text)
    print(text)
    print(f"{args.out / name}.json and .md are written", file=sys.stderr)


def heading(report: dict[str, Any]) -> str:
    """Returns the heading of the table: machine and versions."""
    on, limits = report["machine"], report["limits"]
    device = on["gpu"] if on["gpu"] != "none" else f"{on['processor']}, {on['threads']} threads"
    return (
        f"# {device}\n\ntorch {on['torch']}; copy {limits['copy_bytes_per_second'] / 1e9:.1f} GB/s, float32 "
        f"matrix product {limits['flops_per_second'] / 1e9:,.0f} GFLOP/s. Meaning of the columns: "
        "docs/benchmarks.md.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
