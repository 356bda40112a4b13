"""Make a synthetic world of driving scenes in nuScenes v1.0 layout.

Example:
    python tools/make_synthetic.py --out data/synthetic --train-scenes 240 --val-scenes 24 --workers 2
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from bevkd2.data.synthetic import PRESETS, WorldConfig, generate


def parse_size(text: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT.

    Args:
        text: for example "176x64".

    Returns:
        (width, height) in pixels.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    width, separator, height = text.lower().partition("x")
    if not (separator and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no image size, expected WIDTHxHEIGHT such as 176x64")
    return int(width), int(height)


def build_parser() -> argparse.ArgumentParser:
    """The command line; defaults are those of `WorldConfig`."""
    default = WorldConfig()
    parser = argparse.ArgumentParser(
        description="Make a synthetic world in nuScenes v1.0 layout: for tests, not a benchmark."
    )
    parser.add_argument("--out", required=True, help="root folder of the dataset")
    parser.add_argument("--train-scenes", type=int, default=default.num_train_scenes, dest="num_train_scenes")
    parser.add_argument("--val-scenes", type=int, default=default.num_val_scenes, dest="num_val_scenes")
    parser.add_argument("--frames", type=int, default=default.frames_per_scene, dest="frames_per_scene")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--difficulty", choices=list(PRESETS), default="easy", help="default: %(default)s")
    parser.add_argument("--image-size", type=parse_size, default=default.image_size, metavar="WxH")
    parser.add_argument("--objects", type=int, dest="objects_per_scene", help="default: the difficulty's")
    parser.add_argument("--distractors", type=int, help="default: the difficulty's")
    parser.add_argument("--hue-sigma", type=float, help="default: the difficulty's")
    parser.add_argument("--world-radius", type=float, default=default.world_radius, help="metres")
    parser.add_argument("--lidar-range", type=float, default=default.lidar_range, help="metres")
    parser.add_argument("--jpeg-quality", type=int, default=default.jpeg_quality)
    parser.add_argument("--version", default=default.version, help="name of the folder of tables")
    parser.add_argument("--workers", type=int, default=2, help="processes; the files do not depend on them")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a synthetic world of another configuration"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments; those of the process by default.

    Returns:
        Exit status: 0, or 2 for a user's error.
    """
    fields = {key: value for key, value in vars(build_parser().parse_args(argv)).items() if value is not None}
    out, workers = fields.pop("out"), fields.pop("workers")
    overwrite, difficulty = fields.pop("overwrite"), fields.pop("difficulty")
    start = time.perf_counter()
    try:
        config = WorldConfig.preset(difficulty, **fields)
        generate(config, out, workers=workers, overwrite=overwrite)
    except (ValueError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    seconds = time.perf_counter() - start
    print(f"{out}: version {config.version}, splits {', '.join(config.splits())}; {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
