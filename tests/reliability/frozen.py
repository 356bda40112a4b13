"""What is frozen stays: the teacher, and what the student inherited from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bevkd2.d2 import build_model, comm
from bevkd2.engine import build_trainer, default_argument_parser, launch, run_training, setup
from tests.reliability.families import FAMILIES
from tests.reliability.jobs import run, several
from tests.reliability.report import Row

_MODES: dict[str, tuple[Any, ...]] = {
    "float32": (),
    "bfloat16": ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16"),
    "float16": ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16"),
}
# Gradients that are clipped in every step, and a decay that would show after one.
_SOLVER = ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.1, "SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.BASE_LR", 0.05)
# The teachers differ from the students in nothing, so that PGD's student can inherit a part too.
_INHERITED = {
    "BEVFormer": (),
    "PGD": ("DISTILL.INHERIT.MODE", "freeze", "DISTILL.INHERIT.PARAMS", ["head.scales"]),
}


def prove(
    place: Path,
    names: Sequence[str] = tuple(FAMILIES),
    modes: Sequence[str] = tuple(_MODES),
    processes: Sequence[int] = (1, 2),
) -> list[Row]:
    """Trains each family in each precision, in one process and in several, with clipping and weight decay."""
    row = Row("teacher and inherited parameters and buffers, AMP, clipping, weight decay, 1 and 2 processes")
    for name in names:
        family = FAMILIES[name]
        family.prepare(place)
        for mode in modes:
            for count in processes:
                output = place / name / f"frozen_{mode}_{count}"
                words = family.words(
                    *(place, output, *_MODES[mode], *_SOLVER, *_INHERITED[name]), flags=several(count)
                )
                job = run(words, output, program=_main)
                problems = [] if job.status == 0 else [job.text()[-800:]]
                for rank in range(count if job.status == 0 else 0):
                    problems += json.loads((output / f"changed_{rank}.json").read_text())
                row.check(f"{name}, {mode}, {count} processes", problems)
    return [row]


def _main(words: list[str]) -> int:
    args = default_argument_parser().parse_args(words)
    launch(_train, args.num_gpus, dist_url="auto", args=(args,), device="cpu")
    return 0


def _train(args: Any) -> None:
    """Trains, and writes what changed that must not, and what did not that must."""
    cfg = setup(args)
    model = build_model(cfg)
    frozen = _frozen(model)
    before = {name: tensor.clone() for name, tensor in frozen.items()}
    moving = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    run_training(cfg, build_trainer(cfg, model))
    changed = [name for name, tensor in _frozen(model).items() if not _same(tensor, before[name])]
    changed += [] if model.inherited else ["nothing is inherited"]
    moved = sum(not _same(p, moving[n]) for n, p in model.named_parameters() if p.requires_grad)
    changed += [] if moved > len(moving) / 2 else [f"only {moved} of {len(moving)} parameters were trained"]
    Path(cfg.OUTPUT_DIR, f"changed_{comm.get_rank()}.json").write_text(json.dumps(changed))


def _frozen(model: Any) -> dict[str, Tensor]:
    teacher = {f"teacher.{name}": tensor for name, tensor in model.teacher.state_dict().items()}
    student = model.student.state_dict()
    return teacher | {name: student[name] for name in student if name.startswith(tuple(model.inherited))}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)
