"""What both demos do: train by ``bevkd2 train``, load, time, and say where they are."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bevkd2.modeling  # registers the meta-architectures  # noqa: F401
from bevkd2.checkpoint import load_state, load_strict
from bevkd2.config import CfgNode
from bevkd2.d2 import build_model

TITLES = {"teacher": "T (teacher)", "student": "S (student)", "distilled": "S+KD (distilled)"}


def say(step: str, text: str) -> None:
    """Prints where the demo is."""
    print(f"\n[{step}] {text}", flush=True)


def train_net(output: Path, config: Path, *options: str) -> None:
    """Runs ``bevkd2 train`` with a progress bar; its log goes to ``output``/console.txt.

    Raises:
        SystemExit: it failed; its last lines are printed.
    """
    output.mkdir(parents=True, exist_ok=True)
    flags = [o for o in options if o.startswith("--")]
    pairs = [o for o in options if not o.startswith("--")]
    command = [sys.executable, "-m", "bevkd2.cli", "train", "--config-file", str(config)]
    command += [*flags, "OUTPUT_DIR", str(output), *pairs]
    log = output / "console.txt"
    with log.open("w") as file:
        environment = {**os.environ, "BEVKD2_PROGRESS": "1"}
        code = subprocess.run(command, stdout=file, env=environment, check=False).returncode
    if code:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        sys.exit(f"{tail}\nbevkd2 train failed with exit code {code}; its whole log is {log}")


def train_students(
    output: Path, configs: Mapping[str, Path], teacher: Path, options: Sequence[str]
) -> dict[str, Path]:
    """Trains the student plainly and distilled, and scores the teacher.

    Args:
        output: gets one folder a model.
        configs: YAML files of "teacher", "student" and "distilled".
        teacher: the teacher's weights.
        options: KEY VALUE pairs of all three; those of SOLVER do nothing to the teacher.

    Returns:
        The weights of all three.
    """
    weights = {"teacher": teacher}
    for step, name in (("2/5", "student"), ("3/5", "distilled")):
        say(step, f"training {TITLES[name]}")
        taught = ["DISTILL.TEACHER.WEIGHTS", str(teacher)] if name == "distilled" else []
        train_net(output / name, configs[name], *options, *taught)
        weights[name] = output / name / "model_final.pth"
    say("4/5", "scoring the teacher")
    train_net(output / "teacher", configs["teacher"], "--eval-only", *options, "MODEL.WEIGHTS", str(teacher))
    return weights


def load_model(cfg: CfgNode, weights: Path, device: str) -> nn.Module:
    """Builds a model and loads its weights, every key matched."""
    cfg.MODEL.DEVICE = device
    model = build_model(cfg)
    load_strict(model, load_state(weights), source=str(weights))
    return model.eval()


@torch.no_grad()
def frames_per_second(
    models: Mapping[str, nn.Module], batches: Sequence[list[dict[str, Any]]], rounds: int = 40
) -> dict[str, float]:
    """Returns batches of one a second by model: medians of interleaved runs, images in memory.

    The first three are for warming up, where there are more.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for batch in batches[: rounds + 3]:
        for name, model in models.items():
            start = time.perf_counter()
            model(batch)
            seconds[name].append(time.perf_counter() - start)
    return {name: 1 / statistics.median(times[3:] or times) for name, times in seconds.items()}


def report_files(seconds: float, seed: int, pictures: Sequence[Path], summary: Path) -> None:
    """Prints how long it took and where things are."""
    minutes, rest = divmod(round(seconds), 60)
    print(f"{minutes} min {rest} s, seed {seed}; pictures and numbers:")
    for path in (*pictures, summary):
        print(f"  {path}")
