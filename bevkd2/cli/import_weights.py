"""Converts published weights to this package's checkpoint format, every key accounted for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import bevkd2.modeling  # noqa: F401  (registers the meta-architectures)
from bevkd2.checkpoint import IMPORTER_REGISTRY, check_stated_classes, load_file, save_file
from bevkd2.checkpoint.published import published_state
from bevkd2.checkpoint.strict import warn_of_nan
from bevkd2.cli.paths import path_to_write
from bevkd2.config import class_names, stored_classes
from bevkd2.d2 import META_ARCH_REGISTRY
from bevkd2.engine.defaults import add_import_option, load_args
from bevkd2.engine.options import ConfigArgumentParser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = ConfigArgumentParser(description=__doc__)
    known = ", ".join(sorted(name for name, _ in IMPORTER_REGISTRY))
    parser.add_argument(
        "--arch", required=True, help=f"architecture of the file: {known}, or what a package registers"
    )
    add_import_option(parser)
    parser.add_argument("--config-file", required=True, help="config of the model that the weights are for")
    parser.add_argument("input", help="published file: .pth or .safetensors")
    parser.add_argument("output", type=path_to_write, help="file to write: .pth or .safetensors")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="options that override the config")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Converts one file; returns the exit status."""
    args = parse_args(argv)
    cfg = load_args(args)  # imports plugins, which may register importers
    known = dict(IMPORTER_REGISTRY)
    if args.arch not in known:
        raise ValueError(f"--arch {args.arch!r} is unknown, expected one of {', '.join(sorted(known))}")
    cfg.MODEL.BACKBONE.WEIGHTS = ""
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    file, classes = load_file(args.input), list(stored_classes(cfg))
    check_stated_classes(file, class_names(cfg), args.input, fixed=not classes)
    published = published_state(file, args.input)
    report = known[args.arch](published).check(model.state_dict(), args.input)
    warn_of_nan(report.state, args.input, "use another file")
    named = {"classes": classes} if classes else {}
    plain = Path(args.output).suffix == ".safetensors"
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    save_file({**(report.state if plain else {"model": report.state}), **named}, args.output)
    print(f"{len(published)} keys: {len(report.mapped)} mapped, {len(report.dropped)} dropped, 0 missing")
    for key, reason in report.dropped.items():
        print(f"dropped {key}: {reason}")
    if classes:
        print(f"labels 0 to {len(classes) - 1} are {', '.join(classes)} (DATASETS.CLASSES)")
    print(f"wrote {args.output}")
    return 0
