#!/usr/bin/env python3
"""Measures what every distillation method adds to the plain student's training step; prints JSON.

    python -m benchmarks.bench_methods
    python -m benchmarks.bench_methods --pairs pgd --methods PKD FGD --rounds 9

Every method runs alone, with its defaults, on pairs of the demos: BEVFormer with the thin student (176 x 64
pixels, six cameras) and PGD, on a small synthetic world through bevkd2's loader, with random weights. A step
is forward, backward and optimizer. All steps run in turns in one process; a method's overhead is the ratio of
its median to that of the plain student step. "teacher" compares a full pass of the teacher with one of only
what the config's own methods need. Peak memory is measured in one process per step: the peak of the resident
set minus its size before the models were built. A pair that a method does not support has no entry.
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
from typing import Any

import torch

import bevkd2.modeling  # registers the meta-architectures  # noqa: F401
from benchmarks.machine import machine
from benchmarks.peak_memory import resident_peak_mib
from bevkd2.checkpoint import save_file
from bevkd2.config import CfgNode, load_config
from bevkd2.d2 import EventStorage, build_model
from bevkd2.data import build_train_loader
from bevkd2.data.synthetic import KittiWorldConfig, WorldConfig, generate
from bevkd2.distill import DISTILL_REGISTRY, resolve_teacher, student_config, teacher_config
from bevkd2.engine.solver import build_optimizer

ROOT = Path(__file__).resolve().parent.parent
PAIRS = {
    "bevformer": ROOT / "configs" / "demo" / "distill.yaml",
    "pgd": ROOT / "configs" / "demo_mono" / "distill.yaml",
}
# A student with half the teacher's channels in neck and head: methods pay for their adapters.
NARROW = ["MODEL.FPN.OUT_CHANNELS", 32, "MODEL.FCOS3D.FEATURE_CHANNELS", 32]
STUDENT = "student"
Step = Callable[[list[dict[str, Any]]], None]


def main() -> None:
    """Measures all pairs, or the memory of one step (``--part``)."""
    args = parse_arguments()
    if args.part:
        print(json.dumps(measure_memory(args)))
        return
    report: dict[str, Any] = {"machine": machine(), "threads": 1, "rounds": args.rounds}
    torch.set_num_threads(1)
    for pair in args.pairs:
        with tempfile.TemporaryDirectory() as folder:
            args.world = make_world(pair, Path(folder), args.image_size)
            report[pair] = measure(pair, args)
    text = json.dumps(report, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--methods", nargs="+", default=[], help="names in the registry; all by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--image-size", help="WxH of the files; the world's own by default")
    parser.add_argument("--no-memory", action="store_true", help="seconds only")
    parser.add_argument("--out", type=Path, help="a file that gets the same JSON")
    parser.add_argument("--part", help="measure the memory of this step in this process")
    parser.add_argument("--world", help="of --part")
    return parser.parse_args()


def make_world(pair: str, folder: Path, image_size: str | None) -> str:
    """Makes the samples of a pair."""
    size = {"image_size": tuple(map(int, image_size.split("x")))} if image_size else {}
    world: Any
    if pair == "pgd":
        world = KittiWorldConfig(num_train_frames=16, num_val_frames=0, **size)
    else:
        world = WorldConfig(num_train_scenes=1, num_val_scenes=0, **(size or {"image_size": (176, 64)}))
    generate(world, folder / "world", 1)
    return str(folder / "world")


def measure(pair: str, args: argparse.Namespace) -> dict[str, Any]:
    """Returns seconds and memory of the plain student, of every method, and of the teacher's passes."""
    cfg, batches = prepare(pair, args.world, args.rounds + 1)
    names = args.methods or sorted(name for name, _ in DISTILL_REGISTRY)
    steps = {STUDENT: make_step(cfg, "")}
    for name in names:
        try:
            steps[name] = make_step(cfg, name)
        except ValueError as error:
            print(f"{pair}: {error}", file=sys.stderr)
    steps |= {f"teacher {kind}": make_teacher_pass(cfg, kind) for kind in ("full", "needed")}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number, batch in enumerate(batches):
        order = list(steps.items())
        for name, step in order if number % 2 else reversed(order):
            start = time.perf_counter()
            step(batch)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    teacher = {kind: medians.pop(f"teacher {kind}") for kind in ("full", "needed")}
    memory = {} if args.no_memory else {name: run_part(pair, name, args) for name in medians}
    plain = medians[STUDENT]
    return {
        "config": PAIRS[pair].relative_to(ROOT).as_posix(),
        "student_seconds": plain,
        "student_memory_mib": memory.get(STUDENT),
        "teacher_seconds": teacher,
        "methods": {
            name: {
                "parameters": adapters(cfg, name),
                "step_over_student": medians[name] / plain,
                "extra_memory_mib": memory[name] - memory[STUDENT] if memory else None,
            }
            for name in medians
            if name != STUDENT
        },
    }


def prepare(pair: str, world: str, batches: int) -> tuple[CfgNode, list[list[dict[str, Any]]]]:
    """Returns the pair's config on the world, its teacher's random weights saved, and batches."""
    options = ["DATASETS.ROOT", world, "SEED", 0, "MODEL.DEVICE", "cpu", *(NARROW if pair == "pgd" else [])]
    cfg = load_config(PAIRS[pair], options)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DISTILL.TEACHER.WEIGHTS = str(Path(world).parent / "teacher.pth")
    resolve_teacher(cfg)
    torch.manual_seed(1)
    save_file({"model": build_model(teacher_config(cfg)).state_dict()}, cfg.DISTILL.TEACHER.WEIGHTS)
    loader = iter(build_train_loader(cfg))
    return cfg, [next(loader) for _ in range(batches)]


def make_step(cfg: CfgNode, method: str) -> Step:
    """Returns the training step of the plain student ("") or with one method.

    Raises:
        ValueError: the method does not support the pair.
    """
    cfg = cfg.clone()
    cfg.DISTILL.METHODS = [method]
    torch.manual_seed(0)
    model = build_model(cfg if method else student_config(cfg)).train()
    optimizer = build_optimizer(cfg, model)

    def train(batch: list[dict[str, Any]]) -> None:
        optimizer.zero_grad(set_to_none=True)
        with EventStorage():
            loss = sum(model(batch).values())
        loss.backward()
        optimizer.step()

    return train


def adapters(cfg: CfgNode, method: str) -> int:
    """Returns the number of parameters that a method adds to training."""
    cfg = cfg.clone()
    cfg.DISTILL.METHODS = [method]
    return sum(parameter.numel() for parameter in build_model(cfg).methods.parameters())


def make_teacher_pass(cfg: CfgNode, kind: str) -> Step:
    """Returns a forward pass of the teacher: "full", or what the config's own methods "needed"."""
    model = build_model(cfg)
    teacher, wants = model.teacher, model.wants

    @torch.no_grad()
    def forward(batch: list[dict[str, Any]]) -> None:
        inputs = teacher.preprocess(batch)
        if kind == "full":
            teacher.extract(inputs, wants)
        else:
            teacher.extract_only(inputs, wants)

    return forward


def run_part(pair: str, name: str, args: argparse.Namespace) -> float:
    """Returns the peak memory (MiB) of one step, from a fresh process."""
    command = [sys.executable, "-m", "benchmarks.bench_methods", "--pairs", pair, "--part", name]
    done = subprocess.run(
        [*command, "--world", args.world], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure_memory(args: argparse.Namespace) -> float:
    """Returns the peak memory (MiB) of a step in this process."""
    torch.set_num_threads(1)
    cfg, batches = prepare(args.pairs[0], args.world, 2)
    before = resident_peak_mib(forget=True)
    step = make_step(cfg, "" if args.part == STUDENT else args.part)
    for batch in batches:
        step(batch)
    return resident_peak_mib() - before


if __name__ == "__main__":
    main()
