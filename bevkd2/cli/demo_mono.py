"""The monocular story on a synthetic world in KITTI layout: make it, train plainly and distilled, score.

    python tools/demo_mono.py

No question is asked. Both students get the same data, seed and number of iterations. The teacher T ships with
the repository (docs/demo.md says how it was trained). It ends with a table, the paths of the pictures and
summary.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate
from torch import nn

from bevkd2.cli.demo_steps import (
    TITLES,
    frames_per_second,
    load_model,
    report_files,
    say,
    train_students,
)
from bevkd2.config import CfgNode, class_names, load_config
from bevkd2.config.shipped import shipped_folder
from bevkd2.data import build_test_loader
from bevkd2.data.synthetic import KittiWorldConfig, generate
from bevkd2.kitti import ap_by_distance
from bevkd2.kitti.files import find_frames
from bevkd2.kitti.frame_lists import read_frame_list
from bevkd2.visualization import (
    draw_ap_by_distance,
    mono_figures,
    save_image,
    scores_by_distance,
    see_image,
)

CONFIGS = shipped_folder("configs") / "demo_mono"
TEACHER_WEIGHTS = shipped_folder("assets") / "demo_mono_teacher.safetensors"
TRAININGS = {
    "teacher": CONFIGS / "teacher.yaml",
    "student": CONFIGS / "student.yaml",
    "distilled": CONFIGS / "distill.yaml",
}
MODELS = {**TRAININGS, "distilled": CONFIGS / "student.yaml"}
METRICS = {"3D": "3d", "BEV": "bev"}
DIFFICULTIES = ("easy", "moderate", "hard")
DISTANCES = (0, 12, 16, 20, math.inf)  # metres; the world's objects are 7 to 26 m away


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo from end to end."""
    args = parse_args(argv)
    if not args.teacher.is_file():
        sys.exit(f"the teacher's weights {args.teacher} do not exist; `make demo-mono-teacher` trains them")
    start = time.monotonic()
    say("1/5", f"the synthetic world in KITTI layout: {args.data}")
    sizes = {"num_train_frames": args.train_frames, "num_val_frames": args.val_frames}
    world = KittiWorldConfig.preset(args.difficulty, seed=args.world_seed, **sizes)
    generate(world, args.data, args.workers)

    common = ["DATASETS.ROOT", str(args.data), "MODEL.DEVICE", args.device]
    length = ["SOLVER.MAX_ITER", str(args.iterations)] if args.iterations else []
    options = [*common, "SEED", str(args.seed), *length]
    weights = train_students(args.output, TRAININGS, args.teacher, options)

    say("5/5", "speed and pictures")
    configs = {name: load_config(path, common) for name, path in MODELS.items()}
    models = {name: load_model(configs[name], weights[name], args.device) for name in configs}
    batches = list(build_test_loader(configs["teacher"], configs["teacher"].DATASETS.TEST[0]))
    fps = frames_per_second(models, batches)
    pictures = draw(models, batches, args.output)
    pictures.append(draw_distances(args.data, args.output))

    summary: dict[str, Any] = {
        name: {**scores(args.output / name), "params_m": parameters(model) / 1e6, "fps": fps[name]}
        for name, model in models.items()
    }
    summary |= {"seconds": time.monotonic() - start, "seed": args.seed, "val_frames": args.val_frames}
    (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    report(summary, pictures, args.output / "summary.json")
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the command line; every default is the demo's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output") / "demo-mono")
    parser.add_argument("--data", type=Path, default=Path("data") / "demo_mono")
    parser.add_argument("--teacher", type=Path, default=TEACHER_WEIGHTS, help="weights of T")
    parser.add_argument("--difficulty", default="easy")
    parser.add_argument("--train-frames", type=int, default=480)
    parser.add_argument("--val-frames", type=int, default=120)
    parser.add_argument("--iterations", type=int, default=0, help="of both students; 0: as configured")
    parser.add_argument("--seed", type=int, default=0, help="of both trainings")
    parser.add_argument("--world-seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="MODEL.DEVICE")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw the world")
    return parser.parse_args(argv)


def parameters(model: nn.Module) -> int:
    """Returns how many numbers the model has."""
    return sum(p.numel() for p in model.parameters())


def scores(output: Path) -> dict[str, float | None]:
    """Returns the cars' AP|R40 (percent) that the evaluation wrote for one model."""
    ap = json.loads((output / "inference" / "kitti_scores.json").read_text())["AP_R40"]
    return {
        f"{name}_{difficulty}": ap.get(f"car/{metric}/{difficulty}")
        for name, metric in METRICS.items()
        for difficulty in DIFFICULTIES
    }


def draw(
    models: Mapping[str, nn.Module], batches: Sequence[list[dict[str, Any]]], output: Path
) -> list[Path]:
    """Draws boxes, FPN features and the perspective matrix of the frame with the most cars.

    Returns:
        The paths of the pictures.
    """
    distillation: CfgNode = load_config(TRAININGS["distilled"])
    classes = class_names(distillation)
    car = classes.index("Car")
    sample = max((batch[0] for batch in batches), key=lambda s: int((s["labels"] == car).sum()))
    views = {TITLES[name]: see_image(model, sample) for name, model in models.items()}
    figures = mono_figures(sample, views, classes, perspective=distillation.DISTILL.PERSPECTIVE_FEATURE)
    short = {f"detections_{TITLES[name]}": f"detections_{name}" for name in models}
    paths = []
    for name, figure in figures.items():
        paths.append(output / "pictures" / f"{short.get(name, name)}.png")
        save_image(paths[-1], figure)
    return paths


def draw_distances(data: Path, output: Path) -> Path:
    """Draws the cars' AP by distance of all models; returns the picture's path."""
    split = read_frame_list(data / "ImageSets" / "val.txt")
    bars = {}
    for name, title in TITLES.items():
        frames = find_frames(data / "training", output / name / "inference", split)
        bars[title] = scores_by_distance(ap_by_distance(*frames.read(), DISTANCES))
    path = output / "pictures" / "ap_by_distance.png"
    save_image(path, draw_ap_by_distance(bars, "Cars, 3D IoU 0.7, moderate"))
    return path


def report(summary: Mapping[str, Any], pictures: Sequence[Path], path: Path) -> None:
    """Prints the table and where things are."""
    columns = [f"{metric}_{difficulty}" for metric in METRICS for difficulty in DIFFICULTIES]
    rows = [
        [TITLES[name], *(summary[name][c] for c in columns), summary[name]["params_m"], summary[name]["fps"]]
        for name in TITLES
    ]
    headers = ["", *(c.replace("_", " ") for c in columns), "params (M)", "FPS"]
    formats = ("", *[".2f"] * len(columns), ".3f", ".1f")
    print("\n" + tabulate(rows, headers=headers, floatfmt=formats, missingval="-"))
    frames = f"{summary['val_frames']} held-out synthetic frames"
    print(f"\nCars, AP|R40 at IoU 0.7 in percent, by KITTI's rules, on {frames}.")
    report_files(summary["seconds"], summary["seed"], pictures, path)
