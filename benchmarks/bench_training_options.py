#!/usr/bin/env python3
"""Measures what the options of docs/training_options.md cost and change in the demos' distillations, as JSON.

    python -m benchmarks.bench_training_options --out benchmarks/results/training_options.json --images FOLDER

Pairs are the demos' students, random, and their trained teachers, on images of a small synthetic world. For
each option: the median seconds of a step, interleaved with those of plain steps, and the largest relative
change of a loss in the first step. "normalising" is the share of a plain step in which the teacher's images
are normalised, "scaling" that in which the gradients of fused losses are multiplied by FACTOR * WEIGHT (0:
the pair's losses have no such pass). "decoding" compares INPUT.REDUCED_DECODING with whole decoding of the
JPEGs in --images, both resized to a half and to a quarter.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image

from benchmarks.machine import machine
from bevkd2.config import CfgNode, load_config
from bevkd2.d2 import EventStorage, build_model
from bevkd2.data.image_files import read_image
from bevkd2.data.loader import build_train_loader
from bevkd2.data.synthetic import KittiWorldConfig, WorldConfig, generate
from bevkd2.data.transforms import resize
from bevkd2.distill import Distiller, resolve_teacher
from bevkd2.engine.acceleration import prepare_model

ROOT = Path(__file__).resolve().parent.parent
PAIRS = {"BEVFormer": "demo/distill.yaml", "PGD": "demo_mono/distill.yaml"}
OPTIONS: dict[str, tuple[Any, ...]] = {
    "teacher in bfloat16": ("DISTILL.TEACHER.DTYPE", "bfloat16"),
    "channels-last": ("SOLVER.CHANNELS_LAST", True),
    "encoder checkpointing": ("MODEL.BEVFORMER.ENCODER_CHECKPOINTING", True),
    "compiled": ("SOLVER.COMPILE.MODEL", True, "SOLVER.COMPILE.TEACHER", True),
}
# Functions of modules of bevkd2.ops that multiply gradients of the forward pass by the upstream gradient.
SCALERS = {
    "prediction_loss": "_scaled_by_upstream",
    "weighted_l2": "scaled_by_upstream",
    "normalized_l2": "scaled_by_upstream",
    "softmax_kl": "scaled_by_upstream",
}


def main() -> None:
    """Measures, prints, and writes ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--pairs", nargs="*", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--only", nargs="*", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="JPEGs, in it or below; sides divide by 4"
    )
    parser.add_argument("--out", type=Path, help="a file that gets the same JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = {
            "machine": machine(),
            **{name: measure(name, Path(folder), args.steps, args.only) for name in args.pairs},
        }
    if args.images:
        report["decoding"] = decoding(sorted(args.images.rglob("*.jpg")), rounds=10)
    text = json.dumps(report, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def measure(name: str, folder: Path, steps: int, only: list[str]) -> dict[str, Any]:
    """Measures one pair."""
    cfg = load_config(ROOT / "configs" / PAIRS[name], ["MODEL.DEVICE", "cpu", "SEED", 0])
    batches = make_batches(name, cfg, folder, steps + 1)
    plain = build(cfg, ())
    reference = losses_of(plain, batches[0])
    found: dict[str, Any] = {"shares": shares(plain, batches)}
    for option in only:
        if name == "PGD" and option.startswith("encoder"):
            continue
        other = build(cfg, OPTIONS[option])
        changed = losses_of(other, batches[0])
        times = {"plain": [], option: []}
        for batch in batches[1:]:
            times["plain"].append(seconds(plain, batch))
            times[option].append(seconds(other, batch))
        found[option] = {
            "seconds": statistics.median(times[option]),
            "plain_seconds": statistics.median(times["plain"]),
            "change": {
                key: abs(changed[key] - value) / abs(value) for key, value in reference.items() if value
            },
        }
    return found


def make_batches(name: str, cfg: CfgNode, folder: Path, count: int) -> list[Any]:
    """Makes a world in the size of the demo's, and reads batches of it."""
    root = folder / name
    if name == "BEVFormer":
        generate(WorldConfig(num_train_scenes=1, num_val_scenes=0, image_size=(176, 64)), root, 1)
        cfg.DATASETS.VERSION, cfg.DATASETS.TRAIN = "v1.0-synthetic", ("synthetic_train",)
    else:
        generate(KittiWorldConfig(num_train_frames=4, num_val_frames=1), root, 1)
    cfg.DATASETS.ROOT, cfg.DATALOADER.NUM_WORKERS = str(root), 0
    loader = iter(build_train_loader(cfg))
    return [next(loader) for _ in range(count)]


def build(cfg: CfgNode, options: tuple[Any, ...]) -> Distiller:
    """Builds the pair with options."""
    cfg = cfg.clone()
    cfg.merge_from_list(list(options))
    resolve_teacher(cfg)
    torch.manual_seed(0)
    model: Distiller = build_model(cfg).train()
    prepare_model(cfg, model)
    return model


def losses_of(model: Distiller, batch: Any) -> dict[str, float]:
    """The losses of a step, whose gradients are computed too."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    return {key: value.item() for key, value in losses.items()}


def seconds(model: Distiller, batch: Any) -> float:
    """How long a step takes, without the optimizer."""
    start = time.perf_counter()
    losses_of(model, batch)
    return time.perf_counter() - start


def shares(model: Distiller, batches: list[Any]) -> dict[str, float]:
    """Shares of the steps in which the teacher's images are normalised, and gradients are scaled."""
    normalising: list[float] = []
    scaling: list[float] = []
    with ExitStack() as stack:
        stack.enter_context(timed(model.teacher.pixels, "forward", normalising))
        for op, name in SCALERS.items():
            stack.enter_context(timed(importlib.import_module(f"bevkd2.ops.{op}"), name, scaling))
        total = sum(seconds(model, batch) for batch in batches)
    return {"normalising": sum(normalising) / total, "scaling": sum(scaling) / total}


def decoding(paths: list[Path], rounds: int) -> dict[str, Any]:
    """Compares reduced with whole decoding, resizing included, in turns."""
    found: dict[str, Any] = {"images": len(paths)}
    for divisor in (2, 4):
        times: dict[bool, list[float]] = {False: [], True: []}
        differences = []
        for path in paths * rounds:
            with Image.open(path) as file:
                size = (file.height, file.width)
            small = (size[0] // divisor, size[1] // divisor)
            images = []
            for reduced in (False, True):
                start = time.perf_counter()
                image = read_image(path, path.name, size, "the file", small if reduced else None)
                images.append(resize(image, small).float())
                times[reduced].append(time.perf_counter() - start)
            differences.append((images[0] - images[1]).abs().mean().item())
        found[f"1/{divisor}"] = {
            "mean_difference_grey_levels": statistics.mean(differences),
            "seconds_whole": statistics.median(times[False]),
            "seconds_reduced": statistics.median(times[True]),
        }
    return found


@contextmanager
def timed(owner: Any, name: str, seconds: list[float]) -> Iterator[None]:
    """Adds how long each call of a function takes to a list."""
    function = getattr(owner, name)

    def run(*args: Any) -> Any:
        start = time.perf_counter()
        result = function(*args)
        seconds.append(time.perf_counter() - start)
        return result

    with mock.patch.object(owner, name, run):
        yield


if __name__ == "__main__":
    main()
