"""Exports a trained detector, of a distillation its student, to ONNX or to a torch.export package.

    bevkd2 export --config-file configs/demo/recommended.yaml --output student.onnx \
        --weights output/demo/recommended/model_final.pth
    bevkd2 export --config-file configs/distill_pgd_r18.yaml --output student.onnx --output student.pt2 \
        --weights output/distill_pgd_r18/model_final.pth --image-size 1242x375

The suffix of --output decides: .onnx has standard operators only, and runs in ONNX Runtime by bevkd2.runtime,
which does not import torch; .pt2 is for torch.export.load. The size of the images is fixed, the batch is not.
docs/deployment.md describes inputs and outputs; both kinds of files hold the description as well.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence

from bevkd2.cli.make_synthetic import parse_size
from bevkd2.cli.paths import path_to_write
from bevkd2.engine.defaults import add_import_option, load_args
from bevkd2.engine.options import ConfigArgumentParser
from bevkd2.export import export_detector, image_size_of, load_student
from bevkd2.export.model import OPSET


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
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="options of the config as KEY VALUE pairs")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    args = parse_args(argv)
    start = time.perf_counter()
    # It warns of every node that it leaves as it is.
    logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)
    cfg, model = load_student(load_args(args), args.weights)
    size = image_size_of(cfg, args.image_size)
    description = export_detector(cfg, model, args.output, image_size=size, opset=args.opset)
    for path in args.output:
        print(
            f"{path}: {description['architecture']}, images of {size[1]} x {size[0]}, "
            f"{path.stat().st_size / 1e6:.1f} MB"
        )
    print(f"{time.perf_counter() - start:.0f} s")
    return 0
