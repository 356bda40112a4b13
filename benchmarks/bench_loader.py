#!/usr/bin/env python3
"""Measures how many images a loader worker makes per second, as JSON.

    python -m benchmarks.bench_loader --images FOLDER --out benchmarks/results/loader.json

The world has nuScenes' cameras; their files are the 1600 x 900 JPEGs of --images (nuScenes' own, six or
more), or such images that are generated. "decode" reads the files alone; "decode, half" reads them for half
their size, whole and with INPUT.REDUCED_DECODING; "sample" is the mapper of configs/bevformer, with
INPUT.IMAGE_SCALE 0.5 and photometric distortion, without history. One process, one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.machine import machine
from benchmarks.nuscenes_tables import VERSION, Size, write_tables
from bevkd2.config import load_config
from bevkd2.data.image_files import read_image
from bevkd2.data.nuscenes.dataset import load_nuscenes
from bevkd2.data.nuscenes.mapper import NuScenesMapper
from bevkd2.data.transforms import resize
from bevkd2.structures import CAMERA_NAMES

FRAMES = 4


def main() -> None:
    """Measures, prints, and writes ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="JPEGs of 1600 x 900, in it or below")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="a file that gets the same JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder), args.images, args.rounds)
    text = json.dumps({"machine": machine(), **report}, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def measure(root: Path, images: Path | None, rounds: int) -> dict[str, Any]:
    """Makes the world, and measures."""
    size = Size(1, 0, samples=FRAMES, annotations=35 * FRAMES, sample_data=12 * FRAMES)
    write_tables(root, size, _generated)
    if images:
        own = itertools.cycle(sorted(images.rglob("*.jpg")))
        for path in sorted(root.glob("samples/CAM_*/*.jpg")):
            shutil.copy(next(own), path)
    index = load_nuscenes(root, VERSION, "train")
    cfg = load_config("configs/bevformer/bevformer_small.yaml", ["INPUT.QUEUE_LENGTH", 1])
    whole, half = (900, 1600), (450, 800)
    paths = [name for frame in index for name in frame["file_names"]]

    def read(wanted: tuple[int, int] | None, reduced: bool) -> Callable[[], None]:
        def run() -> None:
            for path in paths:
                image = read_image(path, "", whole, "", wanted if reduced else None)
                if wanted is not None:
                    resize(image, wanted)

        return run

    def sample(reduced: bool) -> Callable[[], None]:
        cfg.INPUT.IMAGE_SCALE, cfg.INPUT.PHOTOMETRIC, cfg.INPUT.REDUCED_DECODING = 0.5, True, reduced
        mapper = NuScenesMapper(cfg, is_train=True)

        def run() -> None:
            for frame in range(len(index)):
                mapper(index, frame, np.random.default_rng(frame))

        return run

    runs = {
        "decode": read(None, False),
        "decode, half": read(half, False),
        "decode, half, reduced": read(half, True),
        "sample": sample(False),
        "sample, reduced": sample(True),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            begun = time.process_time()  # of one thread: what other programs take does not count
            run()
            if number:
                times[name].append(time.process_time() - begun)
    megabytes = sum(Path(path).stat().st_size for path in paths) / len(paths) / 1e6
    return {
        "images": "given" if images else "generated",
        "megabytes_per_image": round(megabytes, 3),
        "images_per_cpu_second": {
            name: round(FRAMES * len(CAMERA_NAMES) / statistics.median(found), 1)
            for name, found in times.items()
        },
    }


def _generated(number: int) -> np.ndarray:
    """An image with detail of several scales."""
    rng = np.random.default_rng(number)
    image = np.full((900, 1600, 3), 110.0)
    for cells in (8, 32, 128, 512):
        noise = rng.normal(0, 60 / cells**0.5, (cells * 9 // 16, cells, 3))
        image += cv2.resize(noise, (1600, 900), interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
