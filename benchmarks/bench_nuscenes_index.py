#!/usr/bin/env python3
"""Measures what nuScenes tables of the size of v1.0-trainval cost, as JSON.

    python -m benchmarks.bench_nuscenes_index --out benchmarks/results/nuscenes_index.json

The tables (2.5 GB) are generated in a temporary folder, or read from --root, where an earlier run made them.
Each step is a process of its own: "build" makes the index of ``train``, "start" reads it, "workers" reads
samples in loader processes, "score" makes the official score of ``val``. Memory is in MiB: "peak" of the
resident set, which includes the libraries' files ("import" is what they take alone); of a worker, "unique"
is what no other process has, and "share" has shared pages divided by their processes. The images are small,
so that what is measured is the index. "workers" is done for ``val``, too, whose index is a fifth as large.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from benchmarks.nuscenes_tables import VERSION, Size, write_tables

IMAGE_SIZE = (160, 90)
WORKERS = 4
SPLITS = {"score": ("val",), "workers": ("val", "train")}  # of the steps; others: ("train",)
SAMPLES = 2000  # that the workers read, together


def main() -> None:
    """Measures, prints, and writes ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="where the tables are, or will be written and kept")
    parser.add_argument("--scenes", type=int, nargs=2, default=(700, 150), metavar=("TRAIN", "VAL"))
    parser.add_argument("--only", nargs="*", choices=STEPS, default=list(STEPS))
    parser.add_argument("--out", type=Path, help="a file that gets the same JSON; steps left out stay in it")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--split", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(STEPS[args.step](args.root, args.split)))
        return
    report = json.loads(args.out.read_text()) if args.out and args.out.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        for found in measure(args.root or Path(folder) / "world", tuple(args.scenes), args.only):
            report.update(found)
            if args.out:
                args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def measure(root: Path, scenes: tuple[int, int], only: list[str]) -> Iterator[dict[str, Any]]:
    """Writes the tables where they are not there, runs the steps, and yields what each found."""
    if not (root / VERSION).is_dir():
        root.mkdir(parents=True, exist_ok=True)
        write_tables(root, _size(scenes), lambda n: np.full((*IMAGE_SIZE[::-1], 3), 60 * n, np.uint8))
    megabytes = round(sum(file.stat().st_size for file in (root / VERSION).iterdir()) / 1e6)
    yield {
        "machine": machine(),
        "table_megabytes": megabytes,
        "scenes": dict(zip(("train", "val"), scenes, strict=True)),
    }
    for step in only:
        found = {}
        for split in SPLITS.get(step, ("train",)):
            command = [sys.executable, "-m", "benchmarks.bench_nuscenes_index", "--root", str(root)]
            command += ["--step", step, "--split", split]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found[split] = json.loads(done.stdout)
        yield {step: found}


def _size(scenes: tuple[int, int]) -> Size:
    """The size of a part of v1.0-trainval."""
    whole = Size(image_size=IMAGE_SIZE)
    share = sum(scenes) / (whole.train_scenes + whole.val_scenes)
    counts = (round(share * n) for n in (whole.samples, whole.annotations, whole.sample_data))
    return Size(*scenes, *counts, image_size=IMAGE_SIZE)


def build(root: Path, split: str) -> dict[str, float]:
    """Reads the tables and makes the index anew."""
    for path in (root / ".bevkd2_cache").glob("*"):
        path.unlink()
    return start(root, split)


def start(root: Path, split: str) -> dict[str, float]:
    """Loads the index."""
    logging.basicConfig(level=logging.INFO)
    from bevkd2.data.nuscenes.dataset import load_nuscenes

    before = _memory("self", "VmHWM")
    return {"import_peak": before, **_measured(lambda: len(load_nuscenes(root, VERSION, split)))}


def workers(root: Path, split: str) -> dict[str, Any]:
    """Reads samples in worker processes; gives their memory after a few samples and after all."""
    from bevkd2.config import load_config
    from bevkd2.data import build_train_loader

    options = ["DATASETS.ROOT", str(root), "DATASETS.TRAIN", (split,), "DATALOADER.NUM_WORKERS", WORKERS]
    cfg = load_config(
        "configs/bevformer/bevformer_tiny.yaml", [*options, "SOLVER.IMS_PER_BATCH", 1, "SEED", 0]
    )
    loader = iter(build_train_loader(cfg))
    found: dict[str, Any] = {"index_megabytes": _index_megabytes(loader._dataset.index)}
    for _ in range(20 * WORKERS):
        next(loader)
    found["first"] = _worker_memory()
    for _ in range(SAMPLES):
        next(loader)
    return {**found, "samples": SAMPLES, "last": _worker_memory()}


def _index_megabytes(index: Any) -> float:
    arrays = [value for value in vars(index).values() if isinstance(value, np.ndarray)]
    return round(sum(array.nbytes for array in arrays) / 1e6, 1)


def _worker_memory() -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"unique": [], "share": []}
    for process in multiprocessing.active_children():
        found["unique"].append(sum(_memory(process.pid, f"Private_{kind}", "smaps_rollup") for kind in KINDS))
        found["share"].append(_memory(process.pid, "Pss", "smaps_rollup"))
    return {name: sorted(values) for name, values in found.items()}


KINDS = ("Clean", "Dirty")


def score(root: Path, split: str) -> dict[str, float]:
    """Scores detections: the objects themselves, with random scores."""
    from bevkd2.data.nuscenes.dataset import load_nuscenes
    from bevkd2.evaluation.nuscenes import NuScenesScorer, SampleDetections, read_tables

    index, rng = load_nuscenes(root, VERSION, split), np.random.default_rng(0)
    detections = {}
    for i in range(len(index)):
        where, boxes = index.annotations(i), index.boxes3d(i)
        boxes.tensor.nan_to_num_()
        detections[index.sample_tokens[i].decode()] = SampleDetections(
            boxes, rng.random(len(boxes)), index.labels[where], index.lidar2global[i], index.ego2global[i]
        )
    before = _memory("self", "VmRSS")
    tables = _measured(lambda: len(read_tables(str(root), VERSION, split).sample_annotation))
    with tempfile.TemporaryDirectory() as out:
        scorer = NuScenesScorer(root=str(root), version=VERSION, split=split, output_dir=out)
        whole = _measured(lambda: scorer.score(detections)["bbox"]["NDS"])
    return {"before": before, "tables": tables, "rest": whole}


def _measured(run: Callable[[], float]) -> dict[str, float]:
    """The result of a function, how long it takes, and the peak of the process until its end."""
    begun, used = time.perf_counter(), time.process_time()
    result = run()
    return {
        "result": result,
        "seconds": round(time.perf_counter() - begun, 2),
        "cpu_seconds": round(time.process_time() - used, 2),
        "peak": _memory("self", "VmHWM"),
        "anonymous": _memory("self", "RssAnon"),
    }


def _memory(pid: int | str | None, field: str, file: str = "status") -> float:
    """A field in KiB of a file of /proc, in MiB."""
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    value = next(line for line in lines if line.startswith(f"{field}:"))
    return round(int(value.split()[1]) / 2**10, 1)


STEPS: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    "build": build,
    "start": start,
    "workers": workers,
    "score": score,
}

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
