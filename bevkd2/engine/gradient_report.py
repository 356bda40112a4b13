"""Every loss of a distillation, and the norm of its gradient on every part of the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bevkd2.checkpoint import check_stated_classes, load_file, load_strict
from bevkd2.checkpoint.io import model_state
from bevkd2.config import CfgNode, class_names, fixed_classes
from bevkd2.d2 import EventStorage, build_model
from bevkd2.data.loader import build_train_loader
from bevkd2.distill import Distiller, gradient_norms, is_distillation, resolve_teacher, trained_parts
from bevkd2.engine.defaults import resolve_device
from bevkd2.engine.schedule import resolve_solver
from bevkd2.engine.trainer import TRAINING, seed_step, split_batch

DETECTION = "all detection losses"
"""The entry of :func:`gradient_report` with which the shares compare."""


def gradient_report(cfg: CfgNode, *, weights: str | Path | None = None, batches: int = 4) -> dict[str, Any]:
    """Measures losses and gradients.

    Args:
        cfg: config of a distillation.
        weights: checkpoint of the student, with the methods' adapters where it has them; None: random ones,
            or what the config names.
        batches: training batches, the first ones of a run; where SOLVER.ACCUMULATION_STEPS divides them, the
            parts are measured one by one, and all numbers are means over them.

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
    cfg = resolve_solver(cfg)  # DISTILL.WARMUP and DECAY are shares of the iterations
    seed = max(cfg.SEED, 0)
    torch.manual_seed(seed)
    model: Distiller = build_model(cfg)
    iteration = _load_weights(cfg, model, str(weights)) if weights else 0
    model.set_progress(iteration, max(cfg.SOLVER.MAX_ITER, iteration + 1))
    model.train()
    parts = trained_parts(model.student)
    found: dict[str, dict[str, Any]] = {}
    loader = iter(build_train_loader(cfg, start_iter=iteration))
    for step in range(batches):
        split = split_batch(next(loader), cfg.SOLVER.ACCUMULATION_STEPS)
        seed_step(seed, 0, iteration + step, TRAINING)
        for samples in split:
            with EventStorage():
                losses = dict(model(samples))
            detection = [value for name, value in losses.items() if not name.startswith("loss_distill_")]
            for name, loss in {DETECTION: torch.stack(detection).sum(), **losses}.items():
                entry = found.setdefault(name, {"value": 0.0, "gradients": dict.fromkeys(parts, 0.0)})
                entry["value"] += loss.item() / (batches * len(split))
                for part, norm in gradient_norms(loss, parts).items():
                    entry["gradients"][part] += norm / (batches * len(split))
    for name, entry in found.items():
        if name.startswith("loss_distill_"):
            whole = found[DETECTION]["gradients"]
            entry["share"] = {p: n / whole[p] if whole[p] else None for p, n in entry["gradients"].items()}
    return {"iteration": iteration, "batches": batches, "losses": found}


def _load_weights(cfg: CfgNode, model: Distiller, path: str) -> int:
    """Loads a checkpoint into the student, and into the methods where it has their part.

    Returns:
        Its iteration, counted from 0: how many were done; 0 where it does not say.
    """
    content = load_file(path)
    parts = ("trainer", "distill")
    check_stated_classes(content, class_names(cfg), path, fixed=bool(fixed_classes(cfg)), parts=parts)
    load_strict(model.student, model_state(content, path), path)
    if content.get("distill"):
        load_strict(model.methods, content["distill"], path)
    done = content.get("iteration", -1)
    return int(done) + 1
