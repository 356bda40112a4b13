#!/usr/bin/env python3
"""Measures a distillation step and its parts, with the ops and in plain torch, and prints JSON.

    python -m benchmarks.bench_train_step
    python -m benchmarks.bench_train_step --size tiny
    python -m benchmarks.bench_train_step --config-file configs/distill_r50.yaml --image-size 1600x900
    python -m benchmarks.bench_train_step --overhead --size small --out benchmarks/results/overhead_small.json
    python -m benchmarks.bench_train_step --overhead --size pgd --out benchmarks/results/overhead_pgd.json

"teacher_forward" is a full pass of the teacher, which fills what the methods read and more, "teacher_needed"
one that leaves the rest out: a distillation step runs the latter. "distillation_over_parts" is the step
divided by the student's step and "teacher_needed" together: ratio of medians, and quartiles of the ratios of
the rounds. "teacher_skipped" is the share of the full pass that is left out. "distillation_step_plain" is the
same step with the forms of plain_forms.py in place of the ops: deformable attention by grid_sample with
BEVFormer's rebatching of the cameras, losses in eager torch. Seconds are medians of interleaved runs in one
process. The share of the ops is the time in bevkd2's ops, forward and backward, divided by the time of a
step, measured by torch.profiler; the share of the plain forms follows, since the rest is the same:
1 - (1 - share) * seconds / plain seconds. Peak memory is measured in one process per part: GPU memory of
tensors, or on the CPU the peak of the resident set minus its size before the model was built. Samples come
from a small synthetic world through bevkd2's loader; all weights are random.

With --overhead, only the seconds are measured, without the plain step. On a CPU they are then processor
seconds of one thread, which other programs on the machine change less than the time of day.

Size "demo" is the demo's pair of models (176 x 64 pixels, 32 x 32 cells, batch 2); "tiny" is BEVFormer-tiny
on a ResNet-18 as student and teacher (256 x 144 pixels, 50 x 50 cells, batch 1). "small" is
configs/distill_r50.yaml, a ResNet-50 taught by a ResNet-101 at BEVFormer-small's 150 x 150 cells and its
history, with images of 480 x 270 pixels instead of 1280 x 720 and batch 1, so that a step takes less than a
minute on one core. "pgd" is configs/distill_pgd_r18.yaml, ResNet-18 with half the channels taught by
ResNet-101, at KITTI's 1242 x 375 pixels, batch 1.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

import bevkd2.modeling  # registers the meta-architectures  # noqa: F401
from benchmarks.harness import quartiles
from benchmarks.machine import machine
from benchmarks.peak_memory import resident_peak_mib
from benchmarks.plain_forms import plain_ops
from bevkd2.checkpoint import save_file
from bevkd2.config import CfgNode, load_config
from bevkd2.d2 import EventStorage, build_model
from bevkd2.data import build_train_loader
from bevkd2.data.synthetic import KittiWorldConfig, SyntheticWorld, WorldConfig, generate
from bevkd2.distill import resolve_teacher, student_config, teacher_config
from bevkd2.engine.defaults import resolve_device
from bevkd2.engine.solver import build_optimizer

PARTS = (
    "student_step",
    "teacher_forward",
    "teacher_needed",
    "distillation_step",
    "distillation_step_plain",
)
ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "configs" / "bevformer" / "bevformer_tiny.yaml"
STRUCTURED = ROOT / "configs" / "_base_" / "structured.yaml"
RESNET18 = {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
WORLD_FRAMES = 16
"""Frames of a world in KITTI layout; the loader begins again after them."""


@dataclasses.dataclass(frozen=True)
class Size:
    """What options of the command line default to."""

    image_size: str
    iterations: int
    config: str | None = None
    """Below configs/; None: made for the run (``make_tiny``)."""
    opts: tuple[str, ...] = ()
    """KEY VALUE options of the config."""


SIZES = {
    "demo": Size("176x64", 20, "demo/distill.yaml"),
    "tiny": Size("256x144", 3),
    "small": Size(
        "480x270",
        5,
        "distill_r50.yaml",
        (
            *("INPUT.IMAGE_SCALE", "1.0", "DISTILL.TEACHER.OPTS", "['INPUT.IMAGE_SCALE', 1.0]"),
            *("SOLVER.IMS_PER_BATCH", "1"),
        ),
    ),
    "pgd": Size("1242x375", 5, "distill_pgd_r18.yaml", ("SOLVER.IMS_PER_BATCH", "1")),
}


def main() -> None:
    """Runs every part in turn, or one of them (``--part``)."""
    args = parse_arguments()
    if args.part:
        print(json.dumps(measure_memory(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_world(args, Path(folder))
        rounds, share = measure_seconds(args)
        memory = {} if args.overhead else {part: run_part(part, args) for part in PARTS}
    seconds = {part: statistics.median(times) for part, times in rounds.items()}
    report = {
        "machine": machine(),
        "config": Path(args.config_file).name,
        "image_size": args.image_size,
        "rounds": args.iterations,
        **{part: {"seconds": value} for part, value in seconds.items()},
        **overhead(rounds, seconds),
    }
    for part, value in memory.items():
        report[part]["peak_memory_mib"] = value
    if share is not None:
        step, plain = seconds["distillation_step"], seconds["distillation_step_plain"]
        report["plain_over_ops"] = plain / step
        report["share_of_ops"] = share
        report["share_of_plain_forms"] = 1 - (1 - share) * step / plain
    text = json.dumps(report, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def overhead(rounds: dict[str, list[float]], seconds: dict[str, float]) -> dict[str, Any]:
    """Returns what distillation costs, by the seconds of every round and their medians by part."""
    step, student, needed = (rounds[part] for part in ("distillation_step", "student_step", "teacher_needed"))
    ratios = [whole / (own + read) for whole, own, read in zip(step, student, needed, strict=True)]
    parts = seconds["student_step"] + seconds["teacher_needed"]
    return {
        "distillation_over_student": seconds["distillation_step"] / seconds["student_step"],
        "distillation_over_parts": seconds["distillation_step"] / parts,
        "distillation_over_parts_quartiles": quartiles(ratios),
        "teacher_skipped": 1 - seconds["teacher_needed"] / seconds["teacher_forward"],
    }


def parse_arguments() -> argparse.Namespace:
    """Parses the command line; options that are not given have the values of the size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="demo", help="what the next three default to")
    parser.add_argument("--config-file")
    parser.add_argument("--image-size", help="of the cameras, before INPUT.IMAGE_SCALE")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--overhead", action="store_true", help="seconds alone, without the plain step")
    parser.add_argument("--part", choices=PARTS, help="measure the memory of this one in this process")
    parser.add_argument("--world", help="made where it is not given")
    parser.add_argument("--out", type=Path, help="a file that gets the same JSON")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE options of the config")
    args = parser.parse_args()
    size = SIZES[args.size]
    args.iterations = args.iterations or size.iterations
    args.image_size = args.image_size or size.image_size
    if args.config_file is None and size.config is not None:
        args.config_file = str(ROOT / "configs" / size.config)
        args.opts = [*size.opts, *args.opts]
    return args


def make_world(args: argparse.Namespace, folder: Path) -> None:
    """Makes the samples, and the config of size "tiny", in a folder."""
    if args.config_file is None:
        make_tiny(args, folder)
    image_size = tuple(map(int, args.image_size.split("x")))
    world: SyntheticWorld
    if load_config(args.config_file, args.opts).DATASETS.FORMAT == "kitti":
        world = KittiWorldConfig(num_train_frames=WORLD_FRAMES, num_val_frames=0, image_size=image_size)
    else:
        world = WorldConfig(num_train_scenes=1, num_val_scenes=0, image_size=image_size)
    args.world = str(folder / "world")
    generate(world, folder / "world", 1)


def make_tiny(args: argparse.Namespace, folder: Path) -> None:
    """Writes the config of size "tiny" into a folder, and names it in the arguments."""
    args.config_file = str(folder / "tiny.yaml")
    small = {"INPUT.IMAGE_SCALE": 1.0, "INPUT.QUEUE_LENGTH": 2, **RESNET18}
    options = [word for pair in small.items() for word in pair]
    teacher = {"CONFIG": str(TINY), "OPTS": options}
    config = {"_BASE_": [str(TINY), str(STRUCTURED)], "DISTILL": {"TEACHER": teacher}}
    Path(args.config_file).write_text(json.dumps(config))  # JSON is YAML
    args.opts = [*map(str, options), "SOLVER.IMS_PER_BATCH", "1", *args.opts]


def measure_seconds(args: argparse.Namespace) -> tuple[dict[str, list[float]], float | None]:
    """Returns the seconds of every round by part, and the share of the ops in a distillation step.

    The parts run in turns, in both orders, so that all of them share slow phases of the machine. The share
    is None with ``--overhead``.
    """
    cfg, batches = prepare(args)
    parts = PARTS[:-1] if args.overhead else PARTS
    clock = time.perf_counter
    if args.overhead and not cfg.MODEL.DEVICE.startswith("cuda"):
        torch.set_num_threads(1)
        clock = time.process_time
    steps = {part: make_step(part, cfg.clone()) for part in parts}
    seconds: dict[str, list[float]] = {part: [] for part in parts}
    for turn, batch in enumerate(batches):
        order = list(steps.items())
        for part, step in order if turn % 2 else reversed(order):
            start = clock()
            step(batch)
            synchronize(cfg)
            seconds[part].append(clock() - start)
    rounds = {part: times[args.warm_up :] for part, times in seconds.items()}
    if args.overhead:
        return rounds, None
    profiled = batches[-min(5, args.iterations) :]
    return rounds, share_of_ops(steps["distillation_step"], profiled, cfg)


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
    step = make_step(args.part, cfg)
    for batch in batches:
        step(batch)
    return torch.cuda.max_memory_allocated() / 2**20 if before == 0.0 else resident_peak_mib() - before


def prepare(args: argparse.Namespace) -> tuple[CfgNode, list]:
    """Returns the config with the world of the benchmark, and the batches; saves the teacher's weights."""
    cfg = load_config(args.config_file, args.opts)
    cfg.DATASETS.ROOT = args.world
    if cfg.DATASETS.FORMAT != "kitti":
        cfg.DATASETS.VERSION, cfg.DATASETS.TRAIN = "v1.0-synthetic", ("synthetic_train",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 0
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    weights = Path(args.world).parent / "teacher.pth"
    cfg.DISTILL.TEACHER.WEIGHTS = str(weights)
    resolve_teacher(cfg)
    if not weights.is_file():
        torch.manual_seed(0)
        save_file({"model": build_model(teacher_config(cfg)).state_dict()}, weights)
    loader = iter(build_train_loader(cfg))
    return cfg, [next(loader) for _ in range(args.warm_up + args.iterations)]


def make_step(part: str, cfg: CfgNode) -> Callable[[list], None]:
    """Returns the function of a batch that is timed."""
    torch.manual_seed(0)
    if part.startswith("teacher"):
        distiller = build_model(cfg)
        teacher, wants = distiller.teacher, distiller.wants
        extract = teacher.extract if part == "teacher_forward" else teacher.extract_only

        @torch.no_grad()
        def forward(batch: list) -> None:
            extract(teacher.preprocess(batch), wants)

        return forward
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
