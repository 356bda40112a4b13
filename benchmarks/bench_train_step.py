#!/usr/bin/env python3
"""Measures a distillation step and its parts, with the ops and in plain torch, and prints JSON.

    python -m benchmarks.bench_train_step
    python -m benchmarks.bench_train_step --size tiny
    python -m benchmarks.bench_train_step --config-file configs/distill_r50.yaml --image-size 1600x900

"distillation_step_plain" is the same step with the forms of plain_forms.py in place of the ops: deformable
attention by grid_sample with BEVFormer's rebatching of the cameras, losses in eager torch. Seconds are
medians of interleaved runs in one process. The share of the ops is the time in bevkd2's ops, forward and
backward, divided by the time of a step, measured by torch.profiler; the share of the plain forms follows,
since the rest is the same: 1 - (1 - share) * seconds / plain seconds. Peak memory is measured in one process
per part: GPU memory of tensors, or on the CPU the peak of the resident set minus its size before the model
was built. Samples come from a small synthetic world through bevkd2's loader; all weights are random. Size
"demo" is the demo's pair of models (176 x 64 pixels, 32 x 32 cells, batch 2); "tiny" is BEVFormer-tiny on a
ResNet-18 as student and teacher (256 x 144 pixels, 50 x 50 cells, batch 1).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

import bevkd2.modeling  # registers the meta-architectures  # noqa: F401
from benchmarks.machine import machine
from benchmarks.peak_memory import resident_peak_mib
from benchmarks.plain_forms import plain_ops
from bevkd2.checkpoint import save_file
from bevkd2.config import CfgNode, load_config
from bevkd2.d2 import EventStorage, build_model
from bevkd2.data import build_train_loader
from bevkd2.data.synthetic import WorldConfig, generate
from bevkd2.distill import is_distillation, resolve_teacher, student_config, teacher_config
from bevkd2.engine.defaults import resolve_device
from bevkd2.engine.solver import build_optimizer

PARTS = ("student_step", "teacher_forward", "distillation_step", "distillation_step_plain")
ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "configs" / "bevformer" / "bevformer_tiny.yaml"
STRUCTURED = ROOT / "configs" / "_base_" / "structured.yaml"
RESNET18 = {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
IMAGE_SIZES = {"demo": "176x64", "tiny": "256x144"}


def main() -> None:
    """Runs every part in turn, or one of them (``--part``)."""
    args = parse_arguments()
    if args.part:
        print(json.dumps(measure_memory(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_world(args, Path(folder))
        seconds, share = measure_seconds(args)
        memory = {part: run_part(part, args) for part in PARTS}
    results = {part: {"seconds": seconds[part], "peak_memory_mib": memory[part]} for part in PARTS}
    step, plain = seconds["distillation_step"], seconds["distillation_step_plain"]
    report = {
        "machine": machine(),
        "config": Path(args.config_file).name,
        "image_size": args.image_size,
        **results,
        "distillation_over_student": step / seconds["student_step"],
        "plain_over_ops": plain / step,
        "share_of_ops": share,
        "share_of_plain_forms": 1 - (1 - share) * step / plain,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def parse_arguments() -> argparse.Namespace:
    """Parses the command line; options that are not given have the values of the size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=IMAGE_SIZES, default="demo", help="what the next two default to")
    parser.add_argument("--config-file")
    parser.add_argument("--image-size", help="of the cameras, before INPUT.IMAGE_SCALE")
    parser.add_argument("--iterations", type=int, help="default: 20, and 3 of size tiny")
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--part", choices=PARTS, help="measure this one in this process")
    parser.add_argument("--world", help="made where it is not given")
    parser.add_argument("--out", type=Path, help="a file that gets the same JSON")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE options of the config")
    args = parser.parse_args()
    args.iterations = args.iterations or {"demo": 20, "tiny": 3}[args.size]
    args.image_size = args.image_size or IMAGE_SIZES[args.size]
    if args.config_file is None and args.size == "demo":
        args.config_file = str(ROOT / "configs" / "demo" / "distill.yaml")
    return args


def make_world(args: argparse.Namespace, folder: Path) -> None:
    """Makes the samples, and the config of size "tiny", in a folder."""
    width, height = map(int, args.image_size.split("x"))
    world = WorldConfig(num_train_scenes=1, num_val_scenes=0, image_size=(width, height))
    args.world = str(folder / "world")
    generate(world, folder / "world", 1)
    if args.config_file is None:
        args.config_file = str(folder / "tiny.yaml")
        small = {"INPUT.IMAGE_SCALE": 1.0, "INPUT.QUEUE_LENGTH": 2, **RESNET18}
        options = [word for pair in small.items() for word in pair]
        teacher = {"CONFIG": str(TINY), "OPTS": options}
        config = {"_BASE_": [str(TINY), str(STRUCTURED)], "DISTILL": {"TEACHER": teacher}}
        Path(args.config_file).write_text(json.dumps(config))  # JSON is YAML
        args.opts = [*map(str, options), "SOLVER.IMS_PER_BATCH", "1", *args.opts]


def measure_seconds(args: argparse.Namespace) -> tuple[dict[str, float], float]:
    """Returns median seconds by part, and the share of the ops in a distillation step.

    The parts run in turns, so that all of them share slow phases of the machine.
    """
    cfg, batches = prepare(args)
    steps = {part: make_step(part, cfg.clone(), Path(args.world).parent) for part in PARTS}
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    for batch in batches:
        for part, step in steps.items():
            start = time.perf_counter()
            step(batch)
            synchronize(cfg)
            seconds[part].append(time.perf_counter() - start)
    medians = {part: statistics.median(times[args.warm_up :]) for part, times in seconds.items()}
    profiled = batches[-min(5, args.iterations) :]
    return medians, share_of_ops(steps["distillation_step"], profiled, cfg)


def synchronize(cfg: CfgNode) -> None:
    """Waits for a GPU."""
    if cfg.MODEL.DEVICE.startswith("cuda"):
        torch.cuda.synchronize()


def share_of_ops(step: Callable[[list], None], batches: list, cfg: CfgNode) -> float:
    """Returns the share of bevkd2's ops in the time of the steps: kernels on a GPU, else CPU time."""
    cuda = cfg.MODEL.DEVICE.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        for batch in batches:
            step(batch)
        synchronize(cfg)
        total = time.perf_counter() - start
    outermost = [event for event in profiler.events() if is_op(event) and not is_op(event.cpu_parent)]
    own = sum(event.device_time_total if cuda else event.cpu_time_total for event in outermost)
    return own / 1e6 / total


def is_op(event: FunctionEvent | None) -> bool:
    """Returns whether a profiled call is one of bevkd2's ops."""
    return event is not None and event.name.startswith("bevkd2::")


def run_part(part: str, args: argparse.Namespace) -> float:
    """Returns the peak memory (MiB) of one part, from a fresh process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.bench_train_step",
        "--part",
        part,
        "--world",
        args.world,
        "--iterations",
        "1",
    ]
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


def prepare(args: argparse.Namespace) -> tuple[CfgNode, list]:
    """Returns the config with the world of the benchmark, and the batches."""
    cfg = load_config(args.config_file, args.opts)
    cfg.DATASETS.ROOT, cfg.DATASETS.VERSION = args.world, "v1.0-synthetic"
    cfg.DATASETS.TRAIN = ("synthetic_train",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 0
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    loader = iter(build_train_loader(cfg))
    return cfg, [next(loader) for _ in range(args.warm_up + args.iterations)]


def make_step(part: str, cfg: CfgNode, folder: Path) -> Callable[[list], None]:
    """Returns the function of a batch that is timed."""
    torch.manual_seed(0)
    if is_distillation(cfg):
        cfg.DISTILL.TEACHER.WEIGHTS = str(folder / "teacher.pth")
        resolve_teacher(cfg)
    if part == "teacher_forward":
        teacher = build_model(teacher_config(cfg)).eval()

        @torch.no_grad()
        def forward(batch: list) -> None:
            teacher.extract(teacher.preprocess(batch))

        return forward
    if part.startswith("distillation_step"):
        config = teacher_config(cfg)
        save_file({"model": build_model(config).state_dict()}, cfg.DISTILL.TEACHER.WEIGHTS)
    model = build_model(student_config(cfg) if part == "student_step" else cfg).train()
    optimizer = build_optimizer(cfg, model)

    def train(batch: list) -> None:
        optimizer.zero_grad(set_to_none=True)
        with EventStorage(), plain_ops() if part == "distillation_step_plain" else nullcontext():
            loss = sum(model(batch).values())
        loss.backward()
        optimizer.step()

    return train


if __name__ == "__main__":
    main()
