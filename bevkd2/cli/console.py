"""The command ``bevkd2``: one subcommand per tool, whose module is imported only when it is named."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import bevkd2
from bevkd2.errors import USER_ERRORS, log_traceback, message_of, traceback_of


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        module: module of ``bevkd2.cli`` whose ``main(argv) -> int`` it runs.
        summary: what it does, for ``bevkd2 --help``.
        flags: come before the user's own.
    """

    module: str
    summary: str
    flags: tuple[str, ...] = ()


COMMANDS = {
    "train": Command("train", "train or distil the model of a config"),
    "eval": Command("train", "score the model of a config (train --eval-only)", ("--eval-only",)),
    "demo": Command("demo", "multi-view: synthetic world, training, distillation, scores, pictures"),
    "demo-mono": Command("demo_mono", "the same for monocular detectors"),
    "experiment": Command("run_experiment", "train and compare the rows and seeds of an experiment"),
    "report": Command("report", "write a page about runs: curves, scores, pictures, settings"),
    "visualize": Command("visualize", "draw detections, features, failures, videos, statistics"),
    "analyze": Command("analyze_model", "count parameters and FLOPs, and time a model"),
    "analyze-distillation": Command(
        "analyze_distillation", "print each loss and its gradient on each part of the student"
    ),
    "compute-priors": Command("compute_priors", "compute box priors of a data set"),
    "export": Command("export", "write a trained detector as an ONNX file or torch.export package"),
    "export-weights": Command("export_weights", "write the student's weights of a checkpoint alone"),
    "import-weights": Command("import_weights", "convert published weights"),
    "kitti-eval": Command("kitti_eval", "score KITTI detection files of any detector"),
    "make-synthetic": Command("make_synthetic", "make a synthetic world in nuScenes or KITTI layout"),
}


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the subcommand's name; the rest of the line is the subcommand's own."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="bevkd2",
        description="Knowledge distillation for camera-based 3D object detectors.",
        epilog="\n".join(["commands:", *lines, "", "`bevkd2 COMMAND --help` lists a command's options."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bevkd2 {bevkd2.__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of those below")
    parser.add_argument("rest", metavar="...", nargs=argparse.REMAINDER, help="its options")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        argv: the words after ``bevkd2``; those of the process by default.

    Returns:
        The exit status.
    """
    args = build_parser().parse_args(argv)
    command = COMMANDS[args.command]
    run = importlib.import_module(f"bevkd2.cli.{command.module}").main
    name = sys.argv[0]
    sys.argv[0] = f"bevkd2 {args.command}"  # what the tool's usage and examples call it
    try:
        return run_cli(run, [*command.flags, *args.rest])
    finally:
        sys.argv[0] = name


def run_cli(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Runs a tool; a user's error becomes one message on stderr and the exit status 1.

    The traceback is written to the run's log.txt, where one was opened. It is printed too where the command
    line has ``--traceback`` or BEVKD2_TRACEBACK is 1. Other errors keep their traceback.

    Args:
        main: the tool; takes the words of the command line, returns the exit status.
        argv: those words, ``--traceback`` among them or not; the process's by default.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    printed = "--traceback" in words or os.environ.get("BEVKD2_TRACEBACK") == "1"
    try:
        return main([word for word in words if word != "--traceback"])
    except USER_ERRORS as error:
        log = log_traceback(error)
        if printed:
            print(traceback_of(error), file=sys.stderr)
        rank = os.environ.get("RANK", "0")
        print(f"{'' if rank == '0' else f'[rank {rank}] '}error: {message_of(error)}", file=sys.stderr)
        if not printed:
            print(f"({f'{log} has the traceback; ' if log else ''}--traceback prints it)", file=sys.stderr)
        return 1
