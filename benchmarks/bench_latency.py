#!/usr/bin/env python3
"""Measures the latency of the demos' detectors: PyTorch, torch.compile, and ONNX Runtime in three precisions.

    python -m benchmarks.bench_latency --files output/latency --prepare
    python -m benchmarks.bench_latency --files output/latency --threads 1 --json latency.json
    python -m benchmarks.bench_latency --files output/latency --threads 2 --json latency.json
    make tables

The first line exports the models and calibrates int8 with training frames; the others time the files. All
contestants compute the same, from uint8 images to boxes: the deployable form of the detector, of one frame
(six cameras) or one image, on consecutive frames of the held-out split. What is beside the graph (thresholds,
suppression) is not in it. Contestants take turns, frame by frame. Students have random weights, which do not
change what is computed.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks.machine import machine
from bevkd2.config import CfgNode, load_config
from bevkd2.d2 import build_model
from bevkd2.data import build_test_loader
from bevkd2.export import (
    calibration_feeds,
    calibration_samples,
    export_detector,
    image_size_of,
    to_float16,
    to_int8,
)
from bevkd2.export.calibration import RecordingGraph, run_sample
from bevkd2.export.model import load_student
from bevkd2.runtime import Graph
from bevkd2.runtime.graph import Array, runtime_of

MODELS = {
    "multi-view teacher": ("configs/demo/teacher.yaml", "assets/demo_teacher.safetensors"),
    "multi-view student": ("configs/demo/student.yaml", ""),
    "monocular teacher": ("configs/demo_mono/teacher.yaml", "assets/demo_mono_teacher.safetensors"),
    "monocular student": ("configs/demo_mono/student.yaml", ""),
}
ROOTS = {"demo": "data/demo", "demo_mono": "data/demo_mono"}
PRECISIONS = ("float32", "float16", "int8")
CALIBRATION_FRAMES = 32
FRAMES = 16

Feeds = list[dict[str, Array]]
Run = Callable[[dict[str, Array]], Any]


def load(name: str, root: str) -> tuple[CfgNode, Any]:
    """Returns config and model of one of ``MODELS``.

    Args:
        name: its key.
        root: folder that holds the demos' worlds.
    """
    config, weights = MODELS[name]
    cfg = load_config(config, ["MODEL.DEVICE", "cpu"])
    cfg.DATASETS.ROOT = str(Path(root) / ROOTS[Path(config).parent.name])
    if weights:
        return load_student(cfg, weights)
    torch.manual_seed(0)
    return cfg, build_model(cfg).eval()


def prepare(names: Sequence[str], folder: Path, root: str) -> None:
    """Writes what is not there: the files of models, and what is fed to them on the first held-out frames."""
    for name in names:
        cfg, model = load(name, root)
        paths = {precision: onnx_path(folder, name, precision) for precision in PRECISIONS}
        source, fed = paths["float32"], paths["float32"].with_suffix(".npz")
        if not source.is_file():
            export_detector(cfg, model, [source], image_size=image_size_of(cfg))
        if not paths["float16"].is_file():
            to_float16(source, paths["float16"])
        if not paths["int8"].is_file():
            samples = calibration_samples(cfg, CALIBRATION_FRAMES)
            to_int8(source, paths["int8"], calibration_feeds(samples, source))
        if not fed.is_file():
            np.savez(fed, **flat(list(held_out(cfg, source))))


def onnx_path(folder: Path, name: str, precision: str) -> Path:
    """Returns the file of a model."""
    return folder / f"{name.replace(' ', '_')}_{precision}.onnx"


def held_out(cfg: CfgNode, path: Path) -> Iterator[dict[str, Array]]:
    """Yields what is fed to a graph on the first frames of the held-out split."""
    graph = RecordingGraph(path, threads=1)
    runner = runtime_of(graph)
    for (sample,), _ in zip(build_test_loader(cfg, cfg.DATASETS.TEST[0]), range(FRAMES), strict=False):
        run_sample(runner, sample)
        yield graph.fed


def flat(feeds: Feeds) -> dict[str, Array]:
    """Returns the inputs of all frames, one array per input."""
    return {key: np.stack([fed[key] for fed in feeds]) for key in feeds[0]}


def contestants(name: str, folder: Path, root: str, threads: int) -> dict[str, Run]:
    """Returns what is compared, by name; each takes the inputs of one frame."""
    _, model = load(name, root)
    paths = {precision: onnx_path(folder, name, precision) for precision in PRECISIONS}
    graphs = {precision: Graph(path, threads=threads) for precision, path in paths.items()}
    form = model.deployable(graphs["float32"].image_size).eval()
    compiled = torch.compile(form)
    order = [port.name for port in form.inputs]

    def tensors(fed: dict[str, Array]) -> list[torch.Tensor]:
        return [torch.from_numpy(fed[key]) for key in order]

    runs: dict[str, Run] = {
        "eager": lambda fed: form(*tensors(fed)),
        "compile": lambda fed: compiled(*tensors(fed)),
    }
    return runs | {f"ONNX Runtime {precision}": graph.run for precision, graph in graphs.items()}


@torch.no_grad()
def time_in_turns(runs: dict[str, Run], feeds: Feeds, seconds: float) -> dict[str, list[float]]:
    """Times contestants in turns, in alternating order.

    Args:
        runs: contestants, warmed up.
        feeds: inputs of the frames, which are cycled through.
        seconds: for all contestants; there are at least 20 rounds.

    Returns:
        Milliseconds of every round by contestant.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    begin, turn = time.perf_counter(), 0
    while turn < 20 or time.perf_counter() - begin < seconds:
        fed = feeds[turn % len(feeds)]
        for name in list(runs) if turn % 2 == 0 else list(runs)[::-1]:
            start = time.perf_counter()
            runs[name](fed)
            times[name].append((time.perf_counter() - start) * 1e3)
        turn += 1
    return times


@torch.no_grad()
def warm_up(runs: dict[str, Run], feeds: Feeds) -> dict[str, str]:
    """Runs every contestant on some frames; returns those that fail, which are taken out, and why."""
    failed = {}
    for name in list(runs):
        try:
            for fed in feeds[:4]:
                runs[name](fed)
        except RuntimeError as error:  # of torch.compile
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            del runs[name]
    return failed


def measure(
    names: Sequence[str], folder: Path, root: str, threads: int, seconds: float, without: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns one row per model and contestant, but for those that are left out."""
    torch.set_num_threads(threads)
    ready, rows = {}, []
    for name in names:
        stored = np.load(onnx_path(folder, name, "float32").with_suffix(".npz"))
        feeds = [{key: stored[key][i] for key in stored} for i in range(FRAMES)]
        every = contestants(name, folder, root, threads)
        runs = {contestant: run for contestant, run in every.items() if contestant not in without}
        for contestant, reason in warm_up(runs, feeds).items():
            rows.append({"model": name, "run by": contestant, "threads": threads, "failed": reason})
        ready[name] = (runs, feeds)
    print("timing", file=sys.stderr, flush=True)
    for name, (runs, feeds) in ready.items():
        for contestant, times in time_in_turns(runs, feeds, seconds / len(ready)).items():
            row = {"model": name, "run by": contestant, "threads": threads, "rounds": len(times)}
            median, late = np.percentile(times, [50, 95])
            rows.append({**row, "median_ms": round(float(median), 2), "p95_ms": round(float(late), 2)})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=Path, required=True, metavar="FOLDER", help="exported models")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--root", default=".", metavar="FOLDER", help="holds data/demo and data/demo_mono")
    parser.add_argument("--prepare", action="store_true", help="export the models, time nothing")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--without", nargs="+", default=[], help="contestants to leave out: torch.compile")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing; default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="put the rows there; older ones go")
    args = parser.parse_args(argv)
    logging.disable(logging.INFO)
    if args.prepare:
        prepare(args.models, args.files, args.root)
        return 0
    rows = measure(args.models, args.files, args.root, args.threads, args.seconds, args.without)
    if args.json:
        stored = json.loads(args.json.read_text())["rows"] if args.json.is_file() else []
        new = {(row["model"], row["threads"]) for row in rows}
        rows = [row for row in stored if (row["model"], row["threads"]) not in new] + rows
        args.json.parent.mkdir(parents=True, exist_ok=True)
        where = {key: value for key, value in machine().items() if key != "threads"}
        where["onnxruntime"] = onnxruntime.__version__
        args.json.write_text(json.dumps({"machine": where, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
