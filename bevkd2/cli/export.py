"""Exports a trained detector, of a distillation its student, to ONNX or to a torch.export package.

    bevkd2 export --config-file configs/demo/recommended.yaml --output student.onnx \
        --weights output/demo/recommended/model_final.pth
    bevkd2 export --config-file configs/distill_pgd_r18.yaml --output student.onnx --output student.pt2 \
        --weights output/distill_pgd_r18/model_final.pth --image-size 1242x375
    bevkd2 export --config-file configs/demo/recommended.yaml --output student_int8.onnx --int8 \
        --weights output/demo/recommended/model_final.pth --calibration-frames 64

The suffix of --output decides: .onnx has standard operators only, and runs in ONNX Runtime by bevkd2.runtime,
which does not import torch; .pt2 is for torch.export.load. The size of the images is fixed, the batch is not.
docs/deployment.md describes inputs and outputs; both kinds of files hold the description as well.
"""

from __future__ import annotations

import argparse
import logging
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bevkd2.cli.make_synthetic import parse_size
from bevkd2.cli.paths import path_to_write
from bevkd2.config import CfgNode
from bevkd2.engine.defaults import add_import_option, load_args
from bevkd2.engine.options import ConfigArgumentParser
from bevkd2.export import (
    calibration_feeds,
    calibration_samples,
    export_detector,
    image_size_of,
    load_student,
    to_float16,
    to_int8,
)
from bevkd2.export.model import OPSET
from bevkd2.export.precision import CONVERTED_MODULES, check_tools
from bevkd2.modeling import Detector

CALIBRATION_FRAMES = 64


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = ConfigArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="of a detector or a distillation"
    )
    add_import_option(parser)
    parser.add_argument(
        "--weights", default="", metavar="FILE", help="by default MODEL.WEIGHTS of the config"
    )
    parser.add_argument(
        "--output",
        type=path_to_write,
        action="append",
        required=True,
        metavar="FILE",
        help=".onnx or .pt2; may be repeated",
    )
    parser.add_argument(
        "--image-size",
        type=parse_size,
        metavar="WxH",
        help="of the image files, before INPUT's resizing; by default those of DATASETS.TEST",
    )
    parser.add_argument("--opset", type=int, default=OPSET, help=f"of .onnx files; {OPSET} by default")
    lower = parser.add_argument_group("lower precision (.onnx)")
    lower.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="default: float32")
    lower.add_argument(
        "--int8", action="store_true", help="quantise what --convert names, with ranges from training frames"
    )
    lower.add_argument(
        "--calibration-frames",
        type=int,
        metavar="N",
        help=f"frames of DATASETS.TRAIN that --int8 reads; default: {CALIBRATION_FRAMES}",
    )
    lower.add_argument(
        "--reduce-range", action="store_true", help="with --int8: weights of 7 bits, for AVX2 without VNNI"
    )
    lower.add_argument(
        "--convert",
        action="append",
        metavar="REGEX",
        help=f"modules that are converted; may be repeated; default: {' '.join(CONVERTED_MODULES)}",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="options of the config as KEY VALUE pairs")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    args = parse_args(argv)
    _check_precision(args)
    lower = args.int8 or args.dtype != "float32"
    start = time.perf_counter()
    # It warns of every node that it leaves as it is.
    logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)
    cfg, model = load_student(load_args(args), args.weights)
    size = image_size_of(cfg, args.image_size)
    options: dict[str, Any] = {"image_size": size, "opset": args.opset}
    if lower:
        description = _export_lower(cfg, model, args, options)
    else:
        description = export_detector(cfg, model, args.output, **options)
    for path in args.output:
        print(
            f"{path}: {description['architecture']}, images of {size[1]} x {size[0]}, "
            f"{path.stat().st_size / 1e6:.1f} MB"
        )
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


def _check_precision(args: argparse.Namespace) -> None:
    lower = args.int8 or args.dtype != "float32"
    for option, value, needed, of in (
        ("--convert", args.convert, lower, "--int8 and --dtype float16"),
        ("--reduce-range", args.reduce_range, args.int8, "--int8"),
        ("--calibration-frames", args.calibration_frames is not None, args.int8, "--int8"),
    ):
        if value and not needed:
            raise ValueError(f"{option} is an option of {of}; add it, or leave {option} out")
    if not lower:
        return
    for regex in args.convert or ():
        try:
            re.compile(regex)
        except re.error as error:
            raise ValueError(f"--convert {regex!r} is no regular expression: {error}") from error
    if args.calibration_frames is not None and args.calibration_frames < 1:
        raise ValueError(f"--calibration-frames is {args.calibration_frames}, expected 1 at least")
    if args.int8 and args.dtype != "float32":
        raise ValueError("--int8 and --dtype float16 exclude each other: call it once for each")
    if len(args.output) > 1 or args.output[0].suffix != ".onnx":
        raise ValueError(
            f"--int8 and --dtype float16 write one .onnx file, not {', '.join(map(str, args.output))}"
        )
    check_tools("int8" if args.int8 else "float16")


def _export_lower(
    cfg: CfgNode, model: Detector[Any, Any, Any], args: argparse.Namespace, options: dict[str, Any]
) -> dict[str, Any]:
    """Exports in float32 and converts the file; returns the description."""
    modules = args.convert or CONVERTED_MODULES
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float32.onnx"
        samples = calibration_samples(cfg, args.calibration_frames or CALIBRATION_FRAMES) if args.int8 else ()
        description = export_detector(cfg, model, [source], **options)
        (path,) = args.output
        path.parent.mkdir(parents=True, exist_ok=True)
        if args.int8:
            feeds = calibration_feeds(samples, source)
            to_int8(source, path, feeds, modules=modules, reduce_range=args.reduce_range)
        else:
            to_float16(source, path, modules=modules)
    return description
