#!/usr/bin/env python3
"""The whole story on a synthetic world: make it, train a student plainly and distilled, score both, and T.

    python tools/demo.py

No question is asked. Both students get the same data, seed and number of iterations. The teacher T ships with
the repository (docs/demo.md says how it was trained). It ends with a table, the paths of the pictures and
summary.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

import bevkd2.modeling  # registers the meta-architectures  # noqa: F401
from bevkd2.checkpoint import load_state, load_strict
from bevkd2.config import CfgNode, load_config
from bevkd2.d2 import build_model
from bevkd2.data import build_test_loader
from bevkd2.data.synthetic import WorldConfig, generate
from bevkd2.visualization import (
    BEVFrame,
    Objects,
    bev_response,
    camera_images,
    detection_figure,
    draw_bev_responses,
    save_image,
)

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs" / "demo"
TEACHER_WEIGHTS = ROOT / "assets" / "demo_teacher.safetensors"
TITLES = {"teacher": "T (teacher)", "student": "S (student)", "distilled": "S+KD (distilled)"}
# Keys of the devkit's metrics_summary.json.
TP_ERRORS = {
    "mATE": "trans_err",
    "mASE": "scale_err",
    "mAOE": "orient_err",
    "mAVE": "vel_err",
    "mAAE": "attr_err",
}


def main() -> None:
    """Runs the demo from end to end."""
    args = parse_args()
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
    weights = {"teacher": args.teacher}
    for step, name, config in (("2/5", "student", "student"), ("3/5", "distilled", "distill")):
        say(step, f"training {TITLES[name]}")
        teacher = ["DISTILL.TEACHER.WEIGHTS", str(args.teacher)] if name == "distilled" else []
        train_net(args.output / name, config, *common, "SEED", str(args.seed), *length, *teacher)
        weights[name] = args.output / name / "model_final.pth"
    say("4/5", "scoring the teacher")
    options = ["--eval-only", *common, "MODEL.WEIGHTS", str(args.teacher)]
    train_net(args.output / "teacher", "teacher", *options)

    say("5/5", "speed and pictures")
    configs = {name: load_config(CONFIGS / f"{c}.yaml", common) for name, c in model_configs().items()}
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


def parse_args() -> argparse.Namespace:
    """Returns the command line; every default is the demo's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "demo")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "demo")
    parser.add_argument("--teacher", type=Path, default=TEACHER_WEIGHTS, help="weights of T")
    parser.add_argument("--difficulty", default="easy")
    parser.add_argument("--train-scenes", type=int, default=240)
    parser.add_argument("--val-scenes", type=int, default=24)
    parser.add_argument("--iterations", type=int, default=0, help="of both students; 0: as configured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="MODEL.DEVICE")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw the world")
    return parser.parse_args()


def model_configs() -> dict[str, str]:
    """Returns the plain config (a file name without suffix) of every model."""
    return {"teacher": "teacher", "student": "student", "distilled": "student"}


def say(step: str, text: str) -> None:
    """Prints where the demo is."""
    print(f"\n[{step}] {text}", flush=True)


def train_net(output: Path, config: str, *options: str) -> None:
    """Runs tools/train_net.py with a progress bar; its log goes to ``output``/console.txt.

    Raises:
        SystemExit: it failed; its last lines are printed.
    """
    output.mkdir(parents=True, exist_ok=True)
    flags = [o for o in options if o.startswith("--")]
    pairs = [o for o in options if not o.startswith("--")]
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file"]
    command += [str(CONFIGS / f"{config}.yaml"), *flags, "OUTPUT_DIR", str(output), *pairs]
    log = output / "console.txt"
    with log.open("w") as file:
        environment = {**os.environ, "BEVKD2_PROGRESS": "1"}
        code = subprocess.run(command, stdout=file, env=environment, check=False).returncode
    if code:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        sys.exit(f"{tail}\ntools/train_net.py failed with exit code {code}; its whole log is {log}")


def load_model(cfg: CfgNode, weights: Path, device: str) -> nn.Module:
    """Builds a model and loads its weights, every key matched."""
    cfg.MODEL.DEVICE = device
    model = build_model(cfg)
    load_strict(model, load_state(weights), source=str(weights))
    return model.eval()


def parameters(model: nn.Module) -> int:
    """Returns how many numbers are needed at inference: auxiliary heads are for training only."""
    return sum(p.numel() for name, p in model.named_parameters() if "heatmap_head" not in name)


def scores(output: Path) -> dict[str, float]:
    """Returns what the official devkit wrote for one model."""
    official = json.loads((output / "inference" / "metrics_summary.json").read_text())
    errors = {name: official["tp_errors"][key] for name, key in TP_ERRORS.items()}
    return {"mAP": official["mean_ap"], "NDS": official["nd_score"], **errors}


@torch.no_grad()
def frames_per_second(
    models: Mapping[str, nn.Module], batches: Sequence[list[dict[str, Any]]], rounds: int = 40
) -> dict[str, float]:
    """Returns key frames (six images) a second by model: medians of interleaved runs, images in memory."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for batch in batches[: rounds + 3]:
        for name, model in models.items():
            start = time.perf_counter()
            model(batch)
            seconds[name].append(time.perf_counter() - start)
    return {name: 1 / statistics.median(times[3:]) for name, times in seconds.items()}


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
    low_x, low_y, _, high_x, high_y, _ = cfg.MODEL.BEVFORMER.PC_RANGE
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
            Objects.from_dict({"boxes": sample["boxes"], "labels": sample["labels"]}),
            Objects.from_dict(detections),
            title=f"{TITLES[name]}, {sample['sample_token']}",
            extent=extent,
            score_threshold=0.25,
        )
        paths.append(folder / f"{name}.png")
        save_image(paths[-1], figure)
    truth = Objects.from_dict({"boxes": sample["boxes"], "labels": sample["labels"]})
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
    minutes, seconds = divmod(round(summary["seconds"]), 60)
    print(f"\nScored by the official nuScenes devkit on {summary['val_scenes']} held-out synthetic scenes.")
    print(f"{minutes} min {seconds} s, seed {summary['seed']}; pictures and numbers:")
    for picture in (*pictures, path):
        print(f"  {picture}")


if __name__ == "__main__":
    main()
