"""The command line and what a run sets up before it builds anything."""

from __future__ import annotations

import argparse
import logging
import os
import re
import secrets
import sys
from pathlib import Path

import torch
from fvcore.common.config import CfgNode as FvcoreNode

import bevkd2.distill  # this and the next register meta-architectures
import bevkd2.modeling  # noqa: F401
from bevkd2.checkpoint.io import replace_atomically
from bevkd2.config import CfgNode, auto_device, import_plugin, read_config
from bevkd2.config.node import load_plain_yaml
from bevkd2.d2 import comm, seed_all_rng
from bevkd2.distill import is_distillation, resolve_teacher, student_config
from bevkd2.engine.options import ConfigArgumentParser
from bevkd2.engine.run_folder import claim, make_output_folder, output_folder
from bevkd2.engine.run_log import log_environment, log_to, why_no_gpu
from bevkd2.engine.schedule import resolve_solver

_logger = logging.getLogger(__name__)

_EPILOG = """
Examples:

Train on 8 GPUs of one machine:
    $ {prog} --config-file configs/distill_r50.yaml --num-gpus 8

Change options of the config:
    $ {prog} --config-file configs/distill_r50.yaml DATASETS.ROOT /data/nuscenes SOLVER.BASE_LR 0.0001

Go on after an interruption, or evaluate:
    $ {prog} --config-file configs/distill_r50.yaml --resume
    $ {prog} --config-file configs/distill_r50.yaml --eval-only MODEL.WEIGHTS output/model_final.pth

Train on two machines:
    (machine 0)$ {prog} --num-gpus 8 --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT ...
    (machine 1)$ {prog} --num-gpus 8 --num-machines 2 --machine-rank 1 --dist-url tcp://HOST:PORT ...
"""


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Builds the parser of Detectron2's command line, with ``--import`` added.

    Args:
        epilog: examples of usage.
    """
    parser = ConfigArgumentParser(
        epilog=epilog or _EPILOG.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to config file")
    parser.add_argument("--resume", action="store_true", help="continue from OUTPUT_DIR/last_checkpoint")
    parser.add_argument("--eval-only", action="store_true", help="perform evaluation only")
    parser.add_argument("--num-gpus", type=int, default=1, help="number of gpus *per machine*")
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument(
        "--machine-rank", type=int, default=0, help="the rank of this machine (unique per machine)"
    )
    # One port per user, not a free one: an orphan of an earlier job shows as a port that is taken.
    port = 2**15 + 2**14 + hash(os.getuid()) % 2**14
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="initialization URL of the process group, or 'auto' on one machine",
    )
    add_import_option(parser)
    parser.add_argument(
        "--traceback", action="store_true", help="print the traceback of an error in config, data or weights"
    )
    parser.add_argument(
        "opts",
        default=[],
        nargs=argparse.REMAINDER,
        help="options of the config as KEY VALUE pairs",
    )
    return parser


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--import PACKAGE``, which :func:`load_args` reads, and which may be repeated.

    Args:
        parser: changed in place; the packages are in the attribute ``plugins`` of what it parses.
    """
    parser.add_argument(
        "--import",
        dest="plugins",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="import a package before the config is read; may be repeated",
    )


def load_args(args: argparse.Namespace) -> CfgNode:
    """Returns the config that a command line names, before anything is set up.

    Args:
        args: of :func:`default_argument_parser`.
    """
    for package in args.plugins:
        import_plugin(package)
    return read_config(args.config_file, args.opts)


def setup(args: argparse.Namespace) -> CfgNode:
    """Imports plugins, reads the config, and sets the run up.

    Args:
        args: of :func:`default_argument_parser`.

    Returns:
        The frozen config: device, seed, teacher and SOLVER are resolved.
    """
    cfg = load_args(args)
    if args.eval_only and is_distillation(cfg):
        cfg = student_config(cfg)  # the student is evaluated; the teacher need not even be there
    if args.eval_only:
        cfg.MODEL.BACKBONE.WEIGHTS = ""  # MODEL.WEIGHTS has the backbone too
    default_setup(cfg, args)
    if not args.eval_only:
        cfg = resolve_solver(cfg)
    cfg.freeze()
    return cfg


def default_setup(cfg: FvcoreNode, args: argparse.Namespace) -> None:
    """Opens the log, decides device and seed, embeds the teacher and seeds the random generators.

    Args:
        cfg: the config, not frozen; MODEL.DEVICE, SEED and DISTILL.TEACHER are resolved in place.
        args: the command line, of which ``resume`` and ``eval_only`` are read, and all is logged.

    Raises:
        OSError: the output folder cannot be made or written.
        ValueError: no output folder, one in which another process trains, a device that is not there, or a
            teacher that does not fit.
    """
    output_dir = output_folder(cfg)
    if comm.is_main_process():
        make_output_folder(cfg)
        if not args.eval_only:
            claim(output_dir)
    comm.synchronize()
    log_to(output_dir, comm.get_rank())
    log_environment(_logger)
    _logger.info("rank %d of %d processes; command line: %s", comm.get_rank(), comm.get_world_size(), args)

    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    cfg.SEED = _resolve_seed(cfg.SEED, output_dir / "config.yaml" if args.resume else None)
    if is_distillation(cfg):
        resolve_teacher(cfg)
    seed_all_rng(cfg.SEED + comm.get_rank())
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only


def resolve_device(device: str) -> str:
    """Returns the device that MODEL.DEVICE names.

    Args:
        device: ``auto``, ``cuda``, ``cuda:N`` or ``cpu``.

    Raises:
        ValueError: another device; a GPU is asked for and is not there; or one GPU by number, for several
            processes.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError(f"MODEL.DEVICE is {device!r}, expected auto, cpu, cuda or cuda:N with N from 0")
    if device == "auto":
        device = auto_device()
        _logger.info("MODEL.DEVICE auto: %s", f"cpu, since {why_no_gpu()}" if device == "cpu" else device)
        return device
    kind = torch.device(device)
    if kind.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {device!r}, but {why_no_gpu()}; add MODEL.DEVICE cpu to run on the CPU"
        )
    if kind.index is not None and kind.index >= torch.cuda.device_count():
        raise ValueError(
            f"MODEL.DEVICE is {device!r}, but PyTorch sees {torch.cuda.device_count()} GPUs, numbered from 0"
        )
    if kind.index is not None and comm.get_world_size() > 1:
        raise ValueError(
            f"MODEL.DEVICE is {device!r}, but each process has a GPU of its own; set MODEL.DEVICE cuda"
        )
    return device


def _resolve_seed(seed: int, earlier_config: Path | None) -> int:
    """Returns the seed of the run: as configured, else as in the run that is resumed, else a fresh one."""
    if seed < 0 and comm.is_main_process():
        if earlier_config is not None and earlier_config.is_file():
            seed = load_plain_yaml(earlier_config).get("SEED", seed)
            _logger.info("SEED %d: of the run that is resumed", seed)
        if seed < 0:
            seed = secrets.randbelow(2**31)
            _logger.info("SEED %d: drawn for this run", seed)
    agreed: int = comm.all_gather(seed)[0]
    return agreed


def write_config(cfg: FvcoreNode, folder: str = "") -> None:
    """Writes config.yaml, from which the run can be repeated, and logs it.

    ``run_training`` and ``load_for_evaluation`` call it: when the model is built and loaded, so that an error
    before that is not lost below the config.

    Args:
        cfg: the config, as :func:`setup` returns it.
        folder: where in OUTPUT_DIR; an evaluation uses ``inference`` and keeps the training's file.
    """
    directory = output_folder(cfg) / folder
    if not comm.is_main_process():
        return
    directory.mkdir(parents=True, exist_ok=True)
    text = cfg.dump()
    replace_atomically(directory / "config.yaml", lambda file: file.write(text.encode()))
    _logger.info("running with the config %s:\n%s", directory / "config.yaml", text)
