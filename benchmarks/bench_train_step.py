#!/usr/bin/env python3
"""Seconds and peak memory of a student step, a teacher forward pass and a distillation step, as JSON.

    python benchmarks/bench_train_step.py
    python benchmarks/bench_train_step.py --config-file configs/distill_r50.yaml --image-size 1600x900

Seconds are medians of interleaved runs in one process. Peak memory is taken in a process a part: GPU memory
in tensors, or on the CPU the peak of the resident set, less what it was before the model was built. Samples
come from a small synthetic world by the project's own loader; all weights are random.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine

import bevkd2.modeling  # registers the meta-architectures  # noqa: F401
from bevkd2.checkpoint import save_file
from bevkd2.config import CfgNode, load_config, resolve_teacher, student_config, teacher_config
from bevkd2.d2 import EventStorage, build_model
from bevkd2.data import build_train_loader
from bevkd2.data.synthetic import WorldConfig, generate
from bevkd2.engine.defaults import resolve_device
from bevkd2.engine.solver import build_optimizer

PARTS = ("student_step", "teacher_forward", "distillation_step")
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Runs every part in turn, or one of them (``--part``)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default=str(ROOT / "configs" / "demo" / "distill.yaml"))
    parser.add_argument("--image-size", default="176x64", help="of the cameras, before INPUT.IMAGE_SCALE")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--part", choices=PARTS, help="measure this one in this process")
    parser.add_argument("--world", help="made where it is not given")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE options of the config")
    args = parser.parse_args()
    if args.part:
        print(json.dumps(measure_memory(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        width, height = map(int, args.image_size.split("x"))
        generate(
            WorldConfig(num_train_scenes=1, num_val_scenes=1, image_size=(width, height)),
            Path(folder) / "world",
            1,
        )
        args.world = str(Path(folder) / "world")
        seconds = measure_seconds(args)
        memory = {part: run_part(part, args) for part in PARTS}
    results = {part: {"seconds": seconds[part], "peak_memory_mib": memory[part]} for part in PARTS}
    ratio = seconds["distillation_step"] / seconds["student_step"]
    print(json.dumps({"machine": machine(), **results, "distillation_over_student": ratio}, indent=2))


def measure_seconds(args: argparse.Namespace) -> dict[str, float]:
    """Returns median seconds by part; the parts take turns, so that a slow moment hits all of them."""
    cfg, batches = prepare(args)
    steps = {part: make_step(part, cfg.clone(), Path(args.world).parent) for part in PARTS}
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    for batch in batches:
        for part, step in steps.items():
            start = time.perf_counter()
            step(batch)
            if cfg.MODEL.DEVICE.startswith("cuda"):
                torch.cuda.synchronize()
            seconds[part].append(time.perf_counter() - start)
    return {part: statistics.median(times[args.warm_up :]) for part, times in seconds.items()}


def run_part(part: str, args: argparse.Namespace) -> float:
    """Returns the peak memory (MiB) of one part, from a fresh process."""
    command = [sys.executable, __file__, "--part", part, "--world", args.world, "--iterations", "2"]
    command += ["--config-file", args.config_file, "--warm-up", "1"]
    done = subprocess.run([*command, *args.opts], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(args: argparse.Namespace) -> float:
    """Returns the peak memory (MiB) of the part in this process."""
    cfg, batches = prepare(args)
    device = torch.device(cfg.MODEL.DEVICE)
    before = 0.0 if device.type == "cuda" else resident_peak_mib(forget=True)
    step = make_step(args.part, cfg, Path(args.world).parent)
    for batch in batches:
        step(batch)
    return torch.cuda.max_memory_allocated() / 2**20 if before == 0.0 else resident_peak_mib() - before


def resident_peak_mib(*, forget: bool = False) -> float:
    """Returns the peak of the resident set since the start or the last ``forget`` (Linux)."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak becomes the present size
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def prepare(args: argparse.Namespace) -> tuple[CfgNode, list]:
    """Returns the config on the benchmark's world, and the batches."""
    cfg = load_config(args.config_file, args.opts)
    cfg.DATASETS.ROOT, cfg.DATASETS.VERSION = args.world, "v1.0-synthetic"
    cfg.DATASETS.TRAIN = ("synthetic_train",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 0
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    loader = iter(build_train_loader(cfg))
    return cfg, [next(loader) for _ in range(args.warm_up + args.iterations)]


def make_step(part: str, cfg: CfgNode, folder: Path) -> Callable[[list], None]:
    """Returns what is timed, as a function of a batch."""
    torch.manual_seed(0)
    if cfg.MODEL.META_ARCHITECTURE == "Distiller":
        cfg.DISTILL.TEACHER.WEIGHTS = str(folder / "teacher.pth")
        resolve_teacher(cfg)
    if part == "teacher_forward":
        teacher = build_model(teacher_config(cfg)).eval()

        @torch.no_grad()
        def forward(batch: list) -> None:
            teacher.extract(teacher.preprocess(batch))

        return forward
    if part == "distillation_step":
        config = teacher_config(cfg)
        save_file({"model": build_model(config).state_dict()}, cfg.DISTILL.TEACHER.WEIGHTS)
    model = build_model(student_config(cfg) if part == "student_step" else cfg).train()
    optimizer = build_optimizer(cfg, model)

    def train(batch: list) -> None:
        optimizer.zero_grad(set_to_none=True)
        with EventStorage():
            sum(model(batch).values()).backward()
        optimizer.step()

    return train


if __name__ == "__main__":
    main()
