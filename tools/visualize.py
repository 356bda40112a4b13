#!/usr/bin/env python
"""Draws what models see: detections beside the ground truth, BEV responses, spatial attention."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from bevkd2.checkpoint import Checkpointer
from bevkd2.config import CfgNode, is_distillation, load_config, student_config
from bevkd2.d2 import build_model
from bevkd2.data import build_test_loader
from bevkd2.engine import default_argument_parser, load_args
from bevkd2.engine.defaults import resolve_device
from bevkd2.modeling.meta_arch.bevformer import BEVFormer
from bevkd2.visualization import ModelStream, choose_frames, frame_figures, save_image

_EPILOG = """
Examples:

Draw four frames of the first split of DATASETS.TEST:
    $ tools/visualize.py --config-file configs/demo/student.yaml --weights student.pth --output pictures

Compare with the teacher, which has a config of its own:
    $ tools/visualize.py --config-file configs/demo/student.yaml --weights student.pth --name student \\
        --compare-weights teacher=configs/demo/teacher.yaml:teacher.safetensors --output pictures --num 8
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line: that of train_net.py, and what is drawn."""
    parser = default_argument_parser(epilog=_EPILOG)
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
    parser.add_argument("--output", required=True, metavar="DIR", help="where pictures are written")
    parser.add_argument("--num", type=int, default=4, help="frames to draw, spread over the scenes")
    parser.add_argument("--score-thresh", type=float, default=0.3, help="least score of a drawn detection")
    return parser


def load_model(cfg: CfgNode, weights: str) -> BEVFormer:
    """Build a model and load its weights, every key matched.

    Args:
        cfg: of the model; of a distillation, its student is built.
        weights: file; by default MODEL.WEIGHTS.

    Returns:
        The model in eval mode.

    Raises:
        ValueError: no weights are named, or the model is not a BEV detector.
    """
    if is_distillation(cfg):
        cfg = student_config(cfg)
    path = weights or cfg.MODEL.WEIGHTS
    if not path:
        raise ValueError("no weights: add --weights FILE, or set MODEL.WEIGHTS")
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    model = build_model(cfg)
    if not isinstance(model, BEVFormer):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}; tools/visualize.py draws BEVFormer"
        )
    Checkpointer(model).load(path, checkpointables=[])
    return model.eval()


def load_models(args: argparse.Namespace, cfg: CfgNode) -> dict[str, ModelStream]:
    """Load every model that the command line names.

    Args:
        args: the command line.
        cfg: of the first model.

    Returns:
        Name -> model, the first one first.

    Raises:
        ValueError: an argument of --compare-weights that is not understood, or a name twice.
    """
    models = {args.name: ModelStream(load_model(cfg.clone(), args.weights))}
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
        models[name] = ModelStream(load_model(other, weights))
    return models


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Run the command line.

    Args:
        argv: arguments; those of the process by default.

    Returns:
        The files that were written.
    """
    args = build_parser().parse_args(argv)
    if args.num < 1:
        raise ValueError(f"--num is {args.num}, expected at least 1")
    cfg = load_args(args)
    models = load_models(args, cfg)
    dataset = build_test_loader(cfg, cfg.DATASETS.TEST[0]).dataset
    scenes = dataset.index.scenes()
    written: list[Path] = []
    for scene, chosen in tqdm(list(zip(scenes, choose_frames(scenes, args.num), strict=True)), unit="scene"):
        for frame in scene[: list(scene).index(chosen[-1]) + 1] if chosen else []:
            sample = dataset[(int(frame), 0)]
            views = {name: model.see(sample) for name, model in models.items()}
            if frame not in chosen:
                continue
            pictures = frame_figures(sample, views, tuple(cfg.INPUT.CAMERAS), args.score_thresh)
            for kind, picture in pictures.items():
                written.append(Path(args.output) / f"{int(frame):05d}_{kind}.png")
                save_image(written[-1], picture)
    for path in written:
        print(path)
    return written


if __name__ == "__main__":
    main()
