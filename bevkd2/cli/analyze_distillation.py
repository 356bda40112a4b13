"""Prints every loss of a distillation and the norm of its gradient on every part of the student.

    python tools/analyze_distillation.py --config-file configs/demo/distill.yaml
    python tools/analyze_distillation.py --config-file configs/demo/distill.yaml \
        --weights output/demo_distill/model_final.pth --batches 8 --json gradients.json

The losses are those of training batches, in training mode, at the start of training or, with --weights, at a
checkpoint; nothing is trained. Values and norms are means over the batches. The last columns compare every
distillation loss with all detection losses together: a loss of 1 % of their gradient on the backbone hardly
changes what the backbone learns, whatever its value is. Choose DISTILL.FACTOR and the weights by these.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from bevkd2.checkpoint import load_file, load_strict
from bevkd2.checkpoint.io import model_state
from bevkd2.config import CfgNode
from bevkd2.d2 import EventStorage, build_model
from bevkd2.data.loader import build_train_loader
from bevkd2.distill import Distiller, gradient_norms, is_distillation, resolve_teacher, trained_parts
from bevkd2.engine.defaults import add_import_option, load_args, resolve_device
from bevkd2.engine.trainer import TRAINING, seed_step

DETECTION = "all detection losses"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config of a distillation")
    add_import_option(parser)
    parser.add_argument("--weights", metavar="PATH", help="checkpoint of the student; default: the start")
    parser.add_argument("--batches", type=int, default=4, metavar="N", help="training batches, 4 by default")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers there, too")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="options that override the config")
    args = parser.parse_args(argv)
    if args.batches < 1:
        parser.error(f"--batches is {args.batches}, expected 1 at least")
    return args


def analyze(cfg: CfgNode, *, weights: str | None = None, batches: int = 4) -> dict[str, Any]:
    """Measures losses and gradients.

    Args:
        cfg: config of a distillation.
        weights: checkpoint of the student, with the methods' adapters where it has them; None: random ones,
            or what the config names.
        batches: training batches, the first ones of a run.

    Returns:
        ``iteration``: of the checkpoint, 0 without one; ``losses``: by name, ``value`` (weighted),
        ``gradients`` (norm by part) and, of distillation losses, ``share`` (norm by part over that of
        all detection losses).

    Raises:
        ValueError: the config is no distillation, or cannot be built.
    """
    if not is_distillation(cfg):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, expected a Distiller: the gradients "
            "are those of a distillation's losses"
        )
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    resolve_teacher(cfg)
    seed = max(cfg.SEED, 0)
    torch.manual_seed(seed)
    model: Distiller = build_model(cfg)
    iteration = load_weights(model, weights) if weights else 0
    model.set_progress(iteration, max(cfg.SOLVER.MAX_ITER, iteration + 1))
    model.train()
    parts = trained_parts(model.student)
    found: dict[str, dict[str, Any]] = {}
    loader = iter(build_train_loader(cfg, start_iter=iteration))
    for step in range(batches):
        batch = next(loader)
        seed_step(seed, 0, iteration + step, TRAINING)
        with EventStorage():
            losses = dict(model(batch))
        detection = [value for name, value in losses.items() if not name.startswith("loss_distill_")]
        for name, loss in {DETECTION: torch.stack(detection).sum(), **losses}.items():
            entry = found.setdefault(name, {"value": 0.0, "gradients": dict.fromkeys(parts, 0.0)})
            entry["value"] += loss.item() / batches
            for part, norm in gradient_norms(loss, parts).items():
                entry["gradients"][part] += norm / batches
    for name, entry in found.items():
        if name.startswith("loss_distill_"):
            whole = found[DETECTION]["gradients"]
            entry["share"] = {p: n / whole[p] if whole[p] else None for p, n in entry["gradients"].items()}
    return {"iteration": iteration, "batches": batches, "losses": found}


def load_weights(model: Distiller, path: str) -> int:
    """Loads a checkpoint into the student, and into the methods where it has their part.

    Returns:
        Its iteration, counted from 0: how many were done; 0 where it does not say.
    """
    content = load_file(path)
    load_strict(model.student, model_state(content, path), path)
    if content.get("distill"):
        load_strict(model.methods, content["distill"], path)
    done = content.get("iteration", -1)
    return int(done) + 1


def text(report: Mapping[str, Any]) -> str:
    """What is printed."""
    losses = report["losses"]
    parts = list(losses[DETECTION]["gradients"])
    rows = []
    for name, entry in losses.items():
        shares = entry.get("share")
        row = [name, f"{entry['value']:.4g}", *(f"{entry['gradients'][part]:.3g}" for part in parts)]
        row += ["" if not shares or shares[p] is None else f"{100 * shares[p]:.2g} %" for p in parts[:1]]
        rows.append(row)
    header = ["loss, weighted", "value", *parts, f"share of {parts[0]}"]
    lines = [
        f"iteration {report['iteration']}, mean of {report['batches']} batches: values, and norms of the "
        "gradients on the parts of the student",
        tabulate(rows, header, disable_numparse=True, colalign=("left", *["right"] * (len(header) - 1))),
    ]
    zero = [n for n, e in losses.items() if "share" in e and e["gradients"][parts[0]] == 0]
    if zero:
        lines.append(f"without any gradient on {parts[0]}: {', '.join(zero)}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    args = parse_args(argv)
    report = analyze(load_args(args), weights=args.weights, batches=args.batches)
    report = {"config": args.config_file, "options": args.opts, "weights": args.weights, **report}
    print(text(report))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0
