#!/usr/bin/env python3
"""Compares the CPU kernels of deformable attention for two instruction sets, as JSON.

    nice -n -15 python -m benchmarks.bench_capabilities --out benchmarks/results/capabilities.json

One process per instruction set (BEVKD2_CPU_CAPABILITY), each with one thread; they run in turns, one pass at
a time, in alternating order. Times are CPU times of the process, medians over the rounds; "speedup" is the
ratio of the two medians, and "quartiles" are those of the ratios of the rounds. The inputs are those of
bench_ms_deform_attn.py with local offsets.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.bench_ms_deform_attn import QUICK, SHAPES, make_inputs, training_pass
from benchmarks.harness import quartiles
from benchmarks.machine import machine
from bevkd2.ops import ms_deform_attn

T = TypeVar("T")
PARTS = ("forward", "backward")


def main() -> None:
    """Measures, prints, and writes ``--out``; with ``--worker`` runs the passes that stdin asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capabilities", nargs=2, default=["avx2", "avx512"], metavar="NAME")
    parser.add_argument("--cases", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="tiny shapes: tests the script")
    parser.add_argument("--out", type=Path, help="a file that gets the same JSON")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.worker:
        work(args)
        return
    text = json.dumps(
        {
            "machine": machine(),
            "dtype": args.dtype,
            "rounds": args.rounds,
            "cases": {case: compare(case, args) for case in args.cases},
        },
        indent=2,
    )
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def compare(case: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs a case in turns with both instruction sets; returns times in ms and their ratio, by part."""
    workers = {name: _start(name, case, args) for name in args.capabilities}
    passes: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for turn in range(args.rounds + 1):  # the first is not counted
        for name in args.capabilities if turn % 2 == 0 else args.capabilities[::-1]:
            passes[name].append(_run_pass(workers[name]))
    for process in workers.values():
        process.communicate()
    found: dict[str, Any] = {}
    for part in PARTS:
        first, second = ([one[part] for one in passes[name][1:]] for name in args.capabilities)
        medians = statistics.median(first), statistics.median(second)
        found[part] = {f"{n}_ms": round(1e3 * m, 3) for n, m in zip(args.capabilities, medians, strict=True)}
        found[part]["speedup"] = round(medians[0] / medians[1], 3)
        ratios = quartiles([a / b for a, b in zip(first, second, strict=True)])
        found[part]["quartiles"] = [round(ratio, 3) for ratio in ratios]
    return found


def _start(capability: str, case: str, args: argparse.Namespace) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.bench_capabilities", "--worker", "--cases", case]
    command += ["--dtype", args.dtype, *(["--quick"] if args.quick else [])]
    environment = {**os.environ, "BEVKD2_CPU_CAPABILITY": capability}
    root = Path(__file__).resolve().parent.parent
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=root, env=environment, stdin=pipe, stdout=pipe, text=True)


def _run_pass(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("pass\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the process of a case ended with status {process.wait()}; its error is above")
    return json.loads(line)


def work(args: argparse.Namespace) -> None:
    """Runs one pass of the case per line of stdin, and prints its CPU seconds by part."""
    (case,) = args.cases
    shape = (QUICK if args.quick else SHAPES)[case]
    inputs = make_inputs(shape, True, getattr(torch, args.dtype), "cpu")
    run = training_pass(lambda v, loc, w: ms_deform_attn(v, shape.levels, None, loc, w), inputs)
    for _ in sys.stdin:
        seconds: dict[str, float] = {}

        def watch(part: str, function: Callable[[], T], seconds: dict[str, float] = seconds) -> T:
            begin = time.process_time()
            result = function()
            seconds[part] = time.process_time() - begin
            return result

        run(watch)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
