"""Trains, distils or evaluates the model of a config; see --help and docs/getting_started.md."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from bevkd2.config import CfgNode
from bevkd2.d2 import build_model, comm, verify_results
from bevkd2.engine import (
    DistillTrainer,
    build_trainer,
    check_datasets,
    default_argument_parser,
    evaluate,
    launch,
    load_args,
    load_for_evaluation,
    run_training,
    setup,
)
from bevkd2.errors import USER_ERRORS, is_of_the_disk


def run(args: argparse.Namespace) -> Mapping[str, Any]:
    """Runs in every process; returns the scores (on the main process)."""
    cfg = setup(args)
    check_datasets(cfg, training=not args.eval_only)
    model = build_model(cfg)
    if not args.eval_only:
        trainer = build_trainer(cfg, model, resume=args.resume)
        return _run_training(cfg, trainer)
    load_for_evaluation(cfg, model, resume=args.resume)
    results = evaluate(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _run_training(cfg: CfgNode, trainer: DistillTrainer) -> Mapping[str, Any]:
    try:
        return run_training(cfg, trainer)
    except USER_ERRORS as error:
        if not trainer.has_begun or isinstance(error, FloatingPointError):
            raise
        if not is_of_the_disk(error):  # what config, data and weights alone can show was refused before
            raise RuntimeError(f"the training failed at iteration {trainer.iter}: {error}") from error
        raise OSError(
            f"the training stopped at iteration {trainer.iter}: OUTPUT_DIR {cfg.OUTPUT_DIR} cannot be "
            f"written ({error}). Its last checkpoint is whole: free some space, and go on with --resume"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and starts the processes; returns the exit status."""
    args = default_argument_parser().parse_args(argv)
    launch(
        run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
        device=load_args(args).MODEL.DEVICE,
    )
    return 0
