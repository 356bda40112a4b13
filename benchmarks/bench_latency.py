#!/usr/bin/env python3
"""Measures the latency of the demos' detectors: PyTorch, torch.compile, and ONNX Runtime in three precisions.

    python -m benchmarks.bench_latency --files output/latency --prepare
    python -m benchmarks.bench_latency --files output/latency --threads 1 2 --json latency.json
    make tables

The first line exports the models and calibrates int8 with training frames; the second times the files. All
contestants compute the same, from uint8 images to boxes: the deployable form of the detector, of one frame
(six cameras) or one image, on consecutive frames of the held-out split. What is beside the graph (thresholds,
suppression) is not in it. Students have random weights, which do not change what is computed.

Every contestant has a process of its own. They take turns, frame by frame, with a pause between two; ONNX
Runtime's threads do not spin, so that they leave the cores to the others. torch.compile has a limit of time
for its compilation. The rows of a model are written when it is done: the same line again continues with the
models whose rows are not in the file.
"""

import argparse
import functools
import itertools
import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
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
EAGER, COMPILE, ONNX_RUNTIME = "eager", "torch.compile", "ONNX Runtime "
RUN_BY = (EAGER, COMPILE, *(ONNX_RUNTIME + precision for precision in PRECISIONS))
"""The contestants."""
CALIBRATION_FRAMES = 32
FRAMES = 16
WARM_UP = 4  # frames
PAUSE = 0.005  # seconds between two runs
START_LIMIT = 600.0  # seconds in which a contestant other than torch.compile must be warm

Feeds = list[dict[str, Array]]
Run = Callable[[dict[str, Array]], Any]
Make = Callable[[], tuple[Run, Feeds]]
"""Makes a contestant and the frames that are fed to it, in its process."""


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


def contestant(name: str, by: str, folder: Path, root: str, threads: int) -> Run:
    """Returns what runs a model, which takes the inputs of one frame.

    Args:
        name: of the model.
        by: one of ``RUN_BY``.
        folder: of the exported files.
        root: folder that holds the demos' worlds.
        threads: of this process.
    """
    torch.set_num_threads(threads)
    if by.startswith(ONNX_RUNTIME):
        path = onnx_path(folder, name, by.removeprefix(ONNX_RUNTIME))
        return Graph(path, threads=threads, spinning=False).run
    _, model = load(name, root)
    image_size = Graph(onnx_path(folder, name, "float32"), threads=1, spinning=False).image_size
    form = model.deployable(image_size).eval()
    order = [port.name for port in form.inputs]
    run = torch.compile(form) if by == COMPILE else form
    return lambda fed: run(*(torch.from_numpy(fed[key]) for key in order))


def stored_feeds(folder: Path, name: str) -> Feeds:
    """Returns what ``prepare`` stored for a model: the inputs of the frames."""
    stored = np.load(onnx_path(folder, name, "float32").with_suffix(".npz"))
    return [{key: stored[key][i] for key in stored} for i in range(FRAMES)]


@torch.no_grad()
def serve(connection: Connection, make: Make) -> None:
    """Runs one contestant in this process: warms it up, then times each frame whose number it receives.

    It sends {"seconds"} of the warm-up or {"failed": the reason}, then milliseconds; None ends it.
    """
    logging.disable(logging.INFO)
    begin = time.perf_counter()
    try:
        run, feeds = make()
        for fed in feeds[:WARM_UP]:
            run(fed)
    except RuntimeError as error:  # of torch.compile
        connection.send({"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"})
        return
    connection.send({"seconds": time.perf_counter() - begin})
    while (frame := connection.recv()) is not None:
        start = time.perf_counter()
        run(feeds[frame % len(feeds)])
        connection.send((time.perf_counter() - start) * 1e3)


def make_contestant(name: str, by: str, folder: Path, root: str, threads: int) -> tuple[Run, Feeds]:
    """Returns a contestant and its frames; the arguments are those of ``contestant``."""
    return contestant(name, by, folder, root, threads), stored_feeds(folder, name)


class Process:
    """One contestant in a process of its own, so that the threads of others do not disturb it."""

    def __init__(self, make: Make) -> None:
        context = multiprocessing.get_context("spawn")  # threads of a forked parent would not be there
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, make), daemon=False)
        self._process.start()
        theirs.close()

    def warm_up(self, limit: float) -> dict[str, Any]:
        """Waits at most ``limit`` seconds; returns {"seconds"}, or {"failed"}, after which it has ended."""
        result = {"failed": f"not ready after {limit:.0f} s"}
        if self._connection.poll(limit):
            try:
                result = self._connection.recv()
            except EOFError:
                self._process.join()
                result = {"failed": f"its process ended with exit status {self._process.exitcode}"}
        if "failed" in result:
            self.end()
        return result

    def run(self, frame: int) -> float:
        """Returns the milliseconds of a frame."""
        self._connection.send(frame)
        milliseconds: float = self._connection.recv()
        return milliseconds

    def end(self) -> None:
        """Ends the process, and its compilation if there is one."""
        self._connection.close()
        self._process.terminate()
        self._process.join()


def time_in_turns(
    runs: dict[str, Callable[[int], float]], seconds: float, pause: float = PAUSE
) -> dict[str, list[float]]:
    """Times contestants in turns, in alternating order.

    Args:
        runs: contestants, warmed up; each takes the number of a frame and returns milliseconds.
        seconds: for all contestants; there are at least 20 rounds.
        pause: seconds between two runs, in which the threads of the last one go to sleep.

    Returns:
        Milliseconds of every round by contestant.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    begin, turn = time.perf_counter(), 0
    while turn < 20 or time.perf_counter() - begin < seconds:
        for name in list(runs) if turn % 2 == 0 else list(runs)[::-1]:
            times[name].append(runs[name](turn))
            time.sleep(pause)
        turn += 1
    return times


def measure(
    name: str,
    makes: Mapping[str, Make],
    threads: int,
    seconds: float,
    limits: tuple[float, float],
) -> list[dict[str, Any]]:
    """Returns one row per contestant of a model.

    Args:
        name: of the model.
        makes: for ``serve``, by contestant.
        threads: of each contestant, for the rows.
        seconds: of timing.
        limits: of the warm-up in seconds: of torch.compile, of the others.
    """
    rows, ready, warm_up = [], {}, {}
    try:
        for by, make in makes.items():
            process = Process(make)
            begun = process.warm_up(limits[0] if by == COMPILE else limits[1])
            print(f"{name}, {by}: {begun}", file=sys.stderr, flush=True)
            if "failed" in begun:
                rows.append({"model": name, "run by": by, "threads": threads, **begun})
            else:
                ready[by], warm_up[by] = process, begun["seconds"]
        times = time_in_turns({by: process.run for by, process in ready.items()}, seconds)
    finally:
        for process in ready.values():
            process.end()
    for by, milliseconds in times.items():
        row = {"model": name, "run by": by, "threads": threads, "rounds": len(milliseconds)}
        median, late = np.percentile(milliseconds, [50, 95])
        row |= {"median_ms": round(float(median), 2), "p95_ms": round(float(late), 2)}
        rows.append({**row, "warm_up_s": round(warm_up[by], 1)})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows to the result file, in place of older ones of the same model, contestant and threads."""
    stored = stored_rows(path)
    new = {_key(row) for row in rows}
    rows = [row for row in stored if _key(row) not in new] + rows
    where = {key: value for key, value in machine().items() if key != "threads"}
    where["onnxruntime"] = onnxruntime.__version__
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": where, "rows": sorted(rows, key=_order)}, indent=1) + "\n")


def stored_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a result file; none if there is no file."""
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.is_file() else []
    return rows


def _key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["model"], row["run by"], row["threads"]


def _order(row: dict[str, Any]) -> tuple[int, int, int]:
    return row["threads"], list(MODELS).index(row["model"]), RUN_BY.index(row["run by"])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=Path, required=True, metavar="FOLDER", help="exported models")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--root", default=".", metavar="FOLDER", help="holds data/demo and data/demo_mono")
    parser.add_argument("--prepare", action="store_true", help="export the models, time nothing")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="default: 1")
    parser.add_argument("--without", nargs="+", choices=RUN_BY, default=[], metavar="NAME", help="leave out")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing per model; %(default)s")
    parser.add_argument("--compile-limit", type=float, default=1200.0, help="seconds; default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="gets each model's rows when it is done")
    parser.add_argument("--again", action="store_true", help="measure what the file has, too")
    args = parser.parse_args(argv)
    logging.disable(logging.INFO)
    if args.prepare:
        prepare(args.models, args.files, args.root)
        return 0
    chosen = [by for by in RUN_BY if by not in args.without]
    for threads, name in itertools.product(args.threads, args.models):
        done = {_key(row) for row in stored_rows(args.json)} if args.json and not args.again else set()
        if all((name, by, threads) in done for by in chosen):
            continue
        common = (args.files, args.root, threads)
        makes = {by: functools.partial(make_contestant, name, by, *common) for by in chosen}
        rows = measure(name, makes, threads, args.seconds, (args.compile_limit, START_LIMIT))
        if args.json:
            write(args.json, rows)
        for row in rows:
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
