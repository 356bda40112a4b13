"""Counts the objects of a monocular data set by depth, with their pixel area (depth-guided paper, Fig. 1).

Writes object_statistics.json and object_statistics.png. No model and no image is read.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from bevkd2.cli.paths import path_to_write
from bevkd2.config import class_names
from bevkd2.data import data_format
from bevkd2.data.format import load_dataset
from bevkd2.data.mono.index import JoinedIndex
from bevkd2.data.mono.object_statistics import by_depth, object_statistics
from bevkd2.engine.defaults import add_import_option, load_args
from bevkd2.engine.options import ConfigArgumentParser, finite_number
from bevkd2.visualization import save_image
from bevkd2.visualization.depth_area_view import draw_depth_area

_EPILOG = """
Examples:

The training split of KITTI, in bins of 3 m as in the paper:
    $ bevkd2 visualize statistics --config-file configs/pgd/pgd_r101_kitti.yaml --output statistics \\
        DATASETS.ROOT /path/to/kitti
"""


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = ConfigArgumentParser(
        description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of a monocular model")
    add_import_option(parser)
    parser.add_argument("--output", type=path_to_write, required=True, metavar="DIR", help="gets both files")
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME",
        help="a split to count; by default those of DATASETS.TRAIN; may be repeated",
    )
    parser.add_argument(
        "--bin", type=finite_number, default=3.0, metavar="METRES", help="size of a bin of depth"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="options of the config as KEY VALUE pairs")
    return parser


def run(args: argparse.Namespace) -> list[Path]:
    """Counts and draws; returns the files that were written."""
    cfg = load_args(args)
    if not data_format(cfg).single_images:
        raise ValueError(
            f"DATASETS.FORMAT is {cfg.DATASETS.FORMAT!r}, whose samples are not single images; statistics by "
            "depth and pixel area are of monocular data sets (nuScenes: format nuscenes_mono)"
        )
    splits = args.split or list(cfg.DATASETS.TRAIN)
    if not splits:
        raise ValueError("DATASETS.TRAIN is empty; name a split with --split")
    names = class_names(cfg)
    found = object_statistics(JoinedIndex([load_dataset(cfg, split) for split in splits]))
    statistics = {"splits": splits, "classes": list(names), **by_depth(found, names, args.bin)}
    table, figure = (args.output / f"object_statistics.{suffix}" for suffix in ("json", "png"))
    title = f"{', '.join(splits)}: {statistics['objects']} objects, bins of {args.bin:g} m"
    save_image(figure, draw_depth_area(statistics, title))
    table.write_text(json.dumps(statistics, indent=1, allow_nan=False) + "\n")
    return [table, figure]


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, counts, and prints the files; returns the exit status."""
    for path in run(build_parser().parse_args(argv)):
        print(path)
    return 0
