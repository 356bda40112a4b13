"""Prints every loss of a distillation and the norm of its gradient on every part of the student.

    bevkd2 analyze-distillation --config-file configs/demo/distill.yaml
    bevkd2 analyze-distillation --config-file configs/demo/distill.yaml \
        --weights output/demo_distill/model_final.pth --batches 8 --json gradients.json

The losses are those of training batches, in training mode, at the start of training or, with --weights, at a
checkpoint; nothing is trained. Values and norms are means over the batches. The last columns compare every
distillation loss with all detection losses together: a loss of 1 % of their gradient on the backbone hardly
changes what the backbone learns, whatever its value is. Choose DISTILL.FACTOR and the weights by these.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from bevkd2.cli.paths import path_to_write
from bevkd2.engine.defaults import add_import_option, load_args
from bevkd2.engine.gradient_report import DETECTION, gradient_report
from bevkd2.engine.options import ConfigArgumentParser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = ConfigArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of a distillation")
    add_import_option(parser)
    parser.add_argument("--weights", metavar="PATH", help="checkpoint of the student; default: the start")
    parser.add_argument("--batches", type=int, default=4, metavar="N", help="training batches, 4 by default")
    parser.add_argument("--json", type=path_to_write, metavar="OUT", help="write the numbers there, too")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="options that override the config")
    args = parser.parse_args(argv)
    if args.batches < 1:
        parser.error(f"--batches is {args.batches}, expected 1 at least")
    return args


def text(report: Mapping[str, Any]) -> str:
    """Returns what is printed: the losses in a table, and those without any gradient.

    Args:
        report: as ``gradient_report`` returns it.
    """
    losses = report["losses"]
    parts = list(losses[DETECTION]["gradients"])
    rows = []
    for name, entry in losses.items():
        shares = entry.get("share")
        row = [name, f"{entry['value']:.4g}", *(f"{entry['gradients'][part]:.3g}" for part in parts)]
        row += ["" if not shares or shares[p] is None else f"{100 * shares[p]:.2g} %" for p in parts[:1]]
        rows.append(row)
    header = ["loss, weighted", "value", *parts, f"share of {parts[0]}"]
    lines = [
        f"iteration {report['iteration']}, mean of {report['batches']} batches: values, and norms of the "
        "gradients on the parts of the student",
        tabulate(rows, header, disable_numparse=True, colalign=("left", *["right"] * (len(header) - 1))),
    ]
    zero = [n for n, e in losses.items() if "share" in e and e["gradients"][parts[0]] == 0]
    if zero:
        lines.append(f"without any gradient on {parts[0]}: {', '.join(zero)}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    args = parse_args(argv)
    report = gradient_report(load_args(args), weights=args.weights, batches=args.batches)
    report = {"config": args.config_file, "options": args.opts, "weights": args.weights, **report}
    print(text(report))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0
