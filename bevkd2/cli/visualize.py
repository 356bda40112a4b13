"""Draws what models see: detections beside the ground truth, and what is behind them.

Of multi-view models: BEV responses, attention and FPN features; of monocular ones: FPN features and the
perspective matrix of feature imitation. Three further commands have options of their own (add --help):

    failures    frames in which a student loses most against its teacher, from detections on disk
    video       scenes as MP4, models side by side, from detections on disk
    statistics  number and pixel area of the objects by depth, of a monocular data set
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bevkd2.checkpoint import Checkpointer
from bevkd2.cli.paths import path_to_write
from bevkd2.config import CfgNode, class_names, fixed_classes, load_config, stored_classes
from bevkd2.d2 import build_model
from bevkd2.data import data_format
from bevkd2.data.loader import first_test_dataset, first_test_split
from bevkd2.distill import is_distillation, student_config
from bevkd2.engine.defaults import add_import_option, load_args, resolve_device
from bevkd2.engine.options import ConfigArgumentParser, finite_number
from bevkd2.modeling import BEVKnowledge, Detector, MonoKnowledge
from bevkd2.visualization import save_image

COMMANDS = ("failures", "video", "statistics")
"""First words that stand for another command: ``bevkd2.cli.visualize_<word>``."""

_EPILOG = """
Examples:

Draw four frames of the first split of DATASETS.TEST:
    $ bevkd2 visualize --config-file configs/demo/student.yaml --weights student.pth --output pictures

Compare with the teacher, which has a config of its own:
    $ bevkd2 visualize --config-file configs/demo/student.yaml --weights student.pth --name student \\
        --compare-weights teacher=configs/demo/teacher.yaml:teacher.safetensors --output pictures --num 8

Two images of a monocular dataset, with the features of student, distilled student and teacher side by side:
    $ bevkd2 visualize --config-file configs/pgd/pgd_r18_half_kitti.yaml --weights student.pth \\
        --name student --compare-weights distilled=distilled.pth \\
        --compare-weights teacher=configs/pgd/pgd_r101_kitti.yaml:teacher.pth --output pictures \\
        --image-id 000008 --image-id 000021
"""


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line: config, weights, and what is drawn."""
    parser = ConfigArgumentParser(
        description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the first model")
    add_import_option(parser)
    parser.add_argument(
        "--weights", default="", metavar="FILE", help="by default MODEL.WEIGHTS of the config"
    )
    parser.add_argument("--name", default="model", help="name of the model in titles and files")
    parser.add_argument(
        "--compare-weights",
        action="append",
        default=[],
        metavar="NAME=[CONFIG:]FILE",
        help="a further model, of the same config unless another is named; may be repeated",
    )
    parser.add_argument(
        "--output", type=path_to_write, required=True, metavar="DIR", help="where pictures are written"
    )
    parser.add_argument("--num", type=int, default=4, help="frames to draw, spread over the split")
    parser.add_argument(
        "--image-id",
        action="append",
        default=[],
        metavar="ID",
        help="draw this image of a monocular dataset (000008, or TOKEN/CAM_FRONT) instead of --num others; "
        "may be repeated",
    )
    parser.add_argument(
        "--score-thresh", type=finite_number, default=0.3, help="least score of a drawn detection"
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        help="options of the config as KEY VALUE pairs",
    )
    return parser


def load_model(cfg: CfgNode, weights: str) -> Detector[Any, Any, Any]:
    """Builds a model and loads its weights, every key matched.

    Args:
        cfg: of the model; of a distillation, its student is built.
        weights: file; by default MODEL.WEIGHTS.

    Returns:
        The model in eval mode.

    Raises:
        ValueError: no weights are named, or the model does not read what DATASETS.FORMAT is.
    """
    if is_distillation(cfg):
        cfg = student_config(cfg)
    path = weights or cfg.MODEL.WEIGHTS
    if not path:
        raise ValueError("no weights: add --weights FILE, or set MODEL.WEIGHTS")
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    model = build_model(cfg)
    kind = MonoKnowledge if data_format(cfg).single_images else BEVKnowledge
    if not (isinstance(model, Detector) and issubclass(model.knowledge, kind)):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}, but pictures of DATASETS.FORMAT "
            f"{cfg.DATASETS.FORMAT!r} need a detector that gives a {kind.__name__}; use another config"
        )
    checkpointer = Checkpointer(model, classes=stored_classes(cfg), fixed_classes=fixed_classes(cfg))
    checkpointer.load(path, checkpointables=[])
    return model.eval()


def load_models(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Detector[Any, Any, Any]]:
    """Loads every model that the command line names.

    Args:
        args: the command line.
        cfg: of the first model.

    Returns:
        Name -> model, the first one first.

    Raises:
        ValueError: an argument of --compare-weights that is not understood, or a name twice.
    """
    models = {args.name: load_model(cfg.clone(), args.weights)}
    for text in args.compare_weights:
        name, equals, place = text.partition("=")
        config, colon, weights = place.rpartition(":")
        if not (name and equals and weights):
            raise ValueError(f"--compare-weights {text!r}: expected NAME=FILE or NAME=CONFIG:FILE")
        if name in models:
            raise ValueError(
                f"--compare-weights {text!r}: there is a model {name!r} already; use another name"
            )
        other = load_config(config, args.opts) if colon else cfg.clone()
        _check_same_data(name, other, cfg)
        models[name] = load_model(other, weights)
    return models


def _check_same_data(name: str, other: CfgNode, cfg: CfgNode) -> None:
    """Refuses a model that would be shown samples that it does not know.

    Raises:
        ValueError: another format, or classes in another order.
    """
    theirs, ours = (_data_of(c) for c in (other, cfg))
    if theirs != ours:
        raise ValueError(
            f"--compare-weights {name}: its config has {theirs}, expected that of --config-file, {ours}"
        )


def _data_of(cfg: CfgNode) -> tuple[str, tuple[str, ...]]:
    return cfg.DATASETS.FORMAT, class_names(cfg)


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, draws, and prints the files; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        return _run_command(words[0], words[1:])
    for path in draw(build_parser().parse_args(words)):
        print(path)
    return 0


def _run_command(name: str, words: Sequence[str]) -> int:
    """Runs a command of ``COMMANDS``; returns its exit status."""
    program = sys.argv[0]
    sys.argv[0] = f"{program} {name}"  # what its usage is called
    try:
        status: int = importlib.import_module(f"bevkd2.cli.visualize_{name}").main(words)
    finally:
        sys.argv[0] = program
    return status


def draw(args: argparse.Namespace) -> list[Path]:
    """Draws what the command line asks for; returns the files that were written."""
    if args.num < 1:
        raise ValueError(f"--num is {args.num}, expected at least 1")
    cfg = load_args(args)
    first_test_split(cfg)  # before models are loaded
    form = data_format(cfg)
    if args.image_id and not form.single_images:
        raise ValueError("--image-id is for monocular datasets; frames of scenes are chosen by --num")
    models = load_models(args, cfg)
    dataset = first_test_dataset(cfg)
    settings = {"num": args.num, "sample_ids": args.image_id, "score_threshold": args.score_thresh}
    written: list[Path] = []
    for name, pictures in form.figures(cfg, dataset, models, **settings):
        for kind, picture in pictures.items():
            written.append(Path(args.output) / f"{name}_{kind}.png")
            save_image(written[-1], picture)
    return written
