"""The whole story on a synthetic world: make it, train a student plainly and distilled, score both, and T.

    python tools/demo.py

No question is asked. Both students get the same data, seed and number of iterations. The teacher T ships with
the repository (docs/demo.md says how it was trained). It ends with a table, the paths of the pictures and
summary.json.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
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
from bevkd2.config import CfgNode, load_config
from bevkd2.config.shipped import shipped_folder
from bevkd2.data import build_test_loader
from bevkd2.data.synthetic import WorldConfig, generate
from bevkd2.visualization import (
    BEVFrame,
    DrawnObjects,
    bev_response,
    camera_images,
    detection_figure,
    draw_bev_responses,
    save_image,
)

CONFIGS = shipped_folder("configs") / "demo"
TEACHER_WEIGHTS = shipped_folder("assets") / "demo_teacher.safetensors"
TRAININGS = {
    name: CONFIGS / f"{file}.yaml"
    for name, file in (("teacher", "teacher"), ("student", "student"), ("distilled", "distill"))
}
# The plain config of every model.
MODELS = {
    name: CONFIGS / f"{file}.yaml"
    for name, file in (("teacher", "teacher"), ("student", "student"), ("distilled", "student"))
}
# Keys of the devkit's metrics_summary.json.
TP_ERRORS = {
    "mATE": "trans_err",
    "mASE": "scale_err",
    "mAOE": "orient_err",
    "mAVE": "vel_err",
    "mAAE": "attr_err",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo from end to end."""
    args = parse_args(argv)
    if not args.teacher.is_file():
        sys.exit(f"the teacher's weights {args.teacher} do not exist; `make demo-teacher` trains them")
    start = time.monotonic()
    say("1/5", f"the synthetic world: {args.data}")
    world = WorldConfig.preset(
        args.difficulty,
        seed=args.seed,
        num_train_scenes=args.train_scenes,
        num_val_scenes=args.val_scenes,
    )
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
    pictures = draw(models, batches, configs["teacher"], args.output / "pictures")

    summary: dict[str, Any] = {
        name: {**scores(args.output / name), "params_m": parameters(model) / 1e6, "fps": fps[name]}
        for name, model in models.items()
    }
    summary |= {"seconds": time.monotonic() - start, "seed": args.seed, "val_scenes": args.val_scenes}
    (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    report(summary, pictures, args.output / "summary.json")
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the command line; every default is the demo's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output") / "demo")
    parser.add_argument("--data", type=Path, default=Path("data") / "demo")
    parser.add_argument("--teacher", type=Path, default=TEACHER_WEIGHTS, help="weights of T")
    parser.add_argument("--difficulty", default="easy")
    parser.add_argument("--train-scenes", type=int, default=240)
    parser.add_argument("--val-scenes", type=int, default=24)
    parser.add_argument("--iterations", type=int, default=0, help="of both students; 0: as configured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="MODEL.DEVICE")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw the world")
    return parser.parse_args(argv)


def parameters(model: nn.Module) -> int:
    """Returns how many numbers are needed at inference: auxiliary heads are for training only."""
    return sum(p.numel() for name, p in model.named_parameters() if "heatmap_head" not in name)


def scores(output: Path) -> dict[str, float]:
    """Returns what the official devkit wrote for one model."""
    official = json.loads((output / "inference" / "metrics_summary.json").read_text())
    errors = {name: official["tp_errors"][key] for name, key in TP_ERRORS.items()}
    return {"mAP": official["mean_ap"], "NDS": official["nd_score"], **errors}


@torch.no_grad()
def draw(
    models: Mapping[str, nn.Module], batches: Sequence[list[dict[str, Any]]], cfg: CfgNode, folder: Path
) -> list[Path]:
    """Draws cameras, boxes from above and BEV responses for a frame in the middle of the first scene.

    Returns:
        The paths of the pictures.
    """
    scene = batches[0][0]["scene_token"]
    frames = [batch for batch in batches if batch[0]["scene_token"] == scene][:5]
    sample = frames[-1][0]
    low_x, low_y, _, high_x, high_y, _ = cfg.INPUT.POINT_RANGE
    extent = (low_x, low_y, high_x, high_y)
    cameras = tuple(cfg.INPUT.CAMERAS)
    images = camera_images(sample["images"].numpy(), cameras)
    matrices = dict(zip(cameras, sample["lidar2img"].double().numpy(), strict=True))
    paths, responses = [], {}
    for name, model in models.items():
        model.train().eval()  # a new stream of frames
        for batch in frames:
            detections = model(batch)[0]
        knowledge = model.extract(model.preprocess(frames[-1]))
        responses[TITLES[name]] = bev_response(knowledge.bev_embed[0].double().numpy(), knowledge.bev_shape)
        figure = detection_figure(
            images,
            matrices,
            DrawnObjects.from_dict({"boxes": sample["boxes"], "labels": sample["labels"]}),
            DrawnObjects.from_dict(detections),
            title=f"{TITLES[name]}, {sample['sample_token']}",
            extent=extent,
            score_threshold=0.25,
        )
        paths.append(folder / f"{name}.png")
        save_image(paths[-1], figure)
    truth = DrawnObjects.from_dict({"boxes": sample["boxes"], "labels": sample["labels"]})
    paths.append(folder / "bev_response.png")
    save_image(paths[-1], draw_bev_responses(responses, BEVFrame(extent, 360), truth))
    return paths


def report(summary: Mapping[str, Any], pictures: Sequence[Path], path: Path) -> None:
    """Prints the table and where things are."""
    columns = ["mAP", "NDS", *TP_ERRORS, "params_m", "fps"]
    rows = [[TITLES[name], *(summary[name][c] for c in columns)] for name in TITLES]
    headers = ["", "mAP", "NDS", *TP_ERRORS, "params (M)", "FPS"]
    formats = ("", *[".3f"] * 7, ".3f", ".1f")
    print("\n" + tabulate(rows, headers=headers, floatfmt=formats))
    print(f"\nScored by the official nuScenes devkit on {summary['val_scenes']} held-out synthetic scenes.")
    report_files(summary["seconds"], summary["seed"], pictures, path)
