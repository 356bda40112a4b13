"""SOLVER's numbers for the run at hand: scaled to its number of processes, epochs turned into iterations.

What is resolved is written back, so that a dumped config says in iterations what was done.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TypeVar

from fvcore.common.config import CfgNode

from bevkd2.d2 import comm
from bevkd2.data.format import load_dataset

_logger = logging.getLogger(__name__)
_Cfg = TypeVar("_Cfg", bound=CfgNode)


def resolve_solver(cfg: _Cfg, count_samples: Callable[[CfgNode], int] | None = None) -> _Cfg:
    """Returns the config with SOLVER.REFERENCE_WORLD_SIZE applied and SOLVER.EPOCHS in iterations.

    Args:
        cfg: the config, frozen or not; returned itself where nothing is to be done, else copied.
        count_samples: returns the number of training samples of a config; by default, of DATASETS.TRAIN. It
            is called only where a setting is in epochs.

    Raises:
        ValueError: settings that contradict each other, or a batch that cannot be scaled.
    """
    solver = cfg.SOLVER
    world_size = comm.get_world_size()
    scales = solver.REFERENCE_WORLD_SIZE not in (0, world_size)
    if not scales and not solver.EPOCHS and solver.LR_HOLD_ITERS:
        return cfg
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    if scales:
        scale_to_world_size(cfg, world_size)
    if cfg.SOLVER.EPOCHS or not cfg.SOLVER.LR_HOLD_ITERS:
        epochs_to_iterations(cfg, (count_samples or count_training_samples)(cfg))
    if frozen:
        cfg.freeze()
    return cfg


def scale_to_world_size(cfg: CfgNode, world_size: int) -> None:
    """Scales SOLVER from REFERENCE_WORLD_SIZE processes to ``world_size``, as Detectron2 does.

    The batch of a process stays. IMS_PER_BATCH and BASE_LR grow with the number of processes; MAX_ITER,
    STEPS, WARMUP_ITERS, LR_HOLD_ITERS, CHECKPOINT_PERIOD and TEST.EVAL_PERIOD shrink with it, except those
    that are in epochs.

    Args:
        cfg: the config, changed in place; REFERENCE_WORLD_SIZE becomes ``world_size``.
        world_size: number of processes.

    Raises:
        ValueError: SOLVER.IMS_PER_BATCH cannot be divided among the reference's processes.
    """
    solver, reference = cfg.SOLVER, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference < 0 or (reference and solver.IMS_PER_BATCH % reference):
        raise ValueError(
            f"SOLVER.REFERENCE_WORLD_SIZE is {reference}, expected 0 (no scaling) or a number of processes "
            f"that divides SOLVER.IMS_PER_BATCH ({solver.IMS_PER_BATCH})"
        )
    scale = world_size / reference
    solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * scale)
    solver.BASE_LR *= scale
    solver.WARMUP_ITERS = round(solver.WARMUP_ITERS / scale)
    solver.LR_HOLD_ITERS = _scaled_period(solver.LR_HOLD_ITERS, scale)
    if not solver.EPOCHS:
        solver.MAX_ITER = _scaled_period(solver.MAX_ITER, scale)
        solver.STEPS = tuple(round(step / scale) for step in solver.STEPS)
        solver.CHECKPOINT_PERIOD = _scaled_period(solver.CHECKPOINT_PERIOD, scale)
        cfg.TEST.EVAL_PERIOD = _scaled_period(cfg.TEST.EVAL_PERIOD, scale)
    solver.REFERENCE_WORLD_SIZE = world_size
    _logger.info(
        "SOLVER scaled from %d to %d processes: IMS_PER_BATCH %d, BASE_LR %g, WARMUP_ITERS %d, MAX_ITER %d, "
        "STEPS %s, CHECKPOINT_PERIOD %d, TEST.EVAL_PERIOD %d",
        reference,
        world_size,
        solver.IMS_PER_BATCH,
        solver.BASE_LR,
        solver.WARMUP_ITERS,
        solver.MAX_ITER,
        tuple(solver.STEPS),
        solver.CHECKPOINT_PERIOD,
        cfg.TEST.EVAL_PERIOD,
    )


def epochs_to_iterations(cfg: CfgNode, num_samples: int) -> None:
    """Turns what is in epochs into iterations, ``ceil(num_samples / IMS_PER_BATCH)`` per epoch.

    Where SOLVER.EPOCHS is set: SOLVER.STEPS (of WarmupMultiStepLR), SOLVER.CHECKPOINT_PERIOD and
    TEST.EVAL_PERIOD. SOLVER.LR_HOLD_ITERS 0 becomes one epoch, with or without SOLVER.EPOCHS.

    Args:
        cfg: the config, changed in place; EPOCHS becomes 0 and MAX_ITER says the same.
        num_samples: samples in the training set.

    Raises:
        ValueError: MAX_ITER is set as well, EPOCHS is at most half an iteration, or a step or period lies
            beyond the last epoch, a begun one included.
    """
    solver, test = cfg.SOLVER, cfg.TEST
    per_epoch = math.ceil(num_samples / solver.IMS_PER_BATCH)
    if not solver.LR_HOLD_ITERS:
        solver.LR_HOLD_ITERS = per_epoch
    if not solver.EPOCHS:
        return
    _check_epochs(cfg)
    epochs, solver.EPOCHS = solver.EPOCHS, 0.0
    solver.MAX_ITER = round(epochs * per_epoch)
    if not solver.MAX_ITER:
        raise ValueError(
            f"SOLVER.EPOCHS is {epochs:g}, at most half an iteration: an epoch has {per_epoch} iterations "
            f"({num_samples} samples in batches of {solver.IMS_PER_BATCH}); raise it, or set SOLVER.MAX_ITER"
        )
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        solver.STEPS = tuple(step * per_epoch for step in solver.STEPS)
    solver.CHECKPOINT_PERIOD *= per_epoch
    test.EVAL_PERIOD *= per_epoch
    _logger.info(
        "SOLVER.EPOCHS %g: %d samples, %d iterations per epoch; MAX_ITER %d, STEPS %s, CHECKPOINT_PERIOD %d, "
        "TEST.EVAL_PERIOD %d",
        epochs,
        num_samples,
        per_epoch,
        solver.MAX_ITER,
        tuple(solver.STEPS),
        solver.CHECKPOINT_PERIOD,
        test.EVAL_PERIOD,
    )


def count_training_samples(cfg: CfgNode) -> int:
    """Returns the number of samples in all splits of DATASETS.TRAIN."""
    return sum(len(load_dataset(cfg, split)) for split in cfg.DATASETS.TRAIN)


def _check_epochs(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    if not solver.EPOCHS > 0:
        raise ValueError(f"SOLVER.EPOCHS is {solver.EPOCHS}, expected a positive number, or 0 for MAX_ITER")
    if solver.MAX_ITER:
        raise ValueError(
            f"SOLVER.EPOCHS is {solver.EPOCHS:g} and SOLVER.MAX_ITER {solver.MAX_ITER}; both say how long to "
            "train: set one of them to 0"
        )
    in_epochs = {
        "SOLVER.CHECKPOINT_PERIOD": solver.CHECKPOINT_PERIOD,
        "TEST.EVAL_PERIOD": cfg.TEST.EVAL_PERIOD,
    }
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        in_epochs["SOLVER.STEPS"] = max(solver.STEPS, default=0)
    for name, value in in_epochs.items():
        if value > math.ceil(solver.EPOCHS):  # half an epoch may have a period of one
            raise ValueError(
                f"{name} is {value}, beyond the {solver.EPOCHS:g} epochs of this training; where "
                "SOLVER.EPOCHS is set it is in epochs, not in iterations: lower it"
            )


def _scaled_period(period: int, scale: float) -> int:
    """Returns a number of iterations for another batch size; 0 has a meaning of its own and stays."""
    return max(round(period / scale), 1) if period else 0
