"""Training and evaluation: the trainer, its hooks, the command line, and processes."""

from bevkd2.engine.build import build_hooks, build_trainer, create_ddp_model, run_training, train
from bevkd2.engine.defaults import (
    default_argument_parser,
    default_setup,
    load_args,
    setup,
    write_config,
)
from bevkd2.engine.evaluator import check_datasets, evaluate, load_for_evaluation
from bevkd2.engine.hooks import HOOK_REGISTRY
from bevkd2.engine.launch import launch
from bevkd2.engine.schedule import resolve_solver
from bevkd2.engine.solver import build_lr_schedule, build_optimizer
from bevkd2.engine.trainer import DistillTrainer, NonFiniteGradientError, NonFiniteLossError

__all__ = [
    "HOOK_REGISTRY",
    "DistillTrainer",
    "NonFiniteGradientError",
    "NonFiniteLossError",
    "build_hooks",
    "build_lr_schedule",
    "build_optimizer",
    "build_trainer",
    "check_datasets",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "evaluate",
    "launch",
    "load_args",
    "load_for_evaluation",
    "resolve_solver",
    "run_training",
    "setup",
    "train",
    "write_config",
]
