"""Make a synthetic world of driving scenes, in nuScenes v1.0 layout or in KITTI object layout.

Examples:
    python tools/make_synthetic.py --out data/synthetic --train-scenes 240 --val-scenes 24 --workers 2
    python tools/make_synthetic.py --format kitti --out data/kitti --train-frames 480 --val-frames 120
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bevkd2.data.synthetic import (
    KITTI_PRESETS,
    PRESETS,
    KittiWorldConfig,
    WorldConfig,
    generate,
    generate_kitti,
)

# By layout: the configuration, and its own options with field and meaning.
FORMATS: dict[str, tuple[type[WorldConfig] | type[KittiWorldConfig], dict[str, tuple[str, str]]]] = {
    "nuscenes": (
        WorldConfig,
        {
            "--train-scenes": ("num_train_scenes", "scenes of synthetic_train"),
            "--val-scenes": ("num_val_scenes", "scenes of synthetic_val"),
            "--frames": ("frames_per_scene", "key frames of a scene"),
            "--objects": ("objects_per_scene", "boxes of a scene"),
            "--world-radius": ("world_radius", "metres"),
            "--lidar-range": ("lidar_range", "metres"),
            "--jpeg-quality": ("jpeg_quality", "1 to 100"),
            "--version": ("version", "name of the folder of tables"),
        },
    ),
    "kitti": (
        KittiWorldConfig,
        {
            "--train-frames": ("num_train_frames", "frames of train.txt"),
            "--val-frames": ("num_val_frames", "frames of val.txt"),
            "--horizontal-fov": ("horizontal_fov", "degrees"),
            "--focal-sigma": ("focal_sigma", "share by which focal lengths stray"),
            "--min-objects": ("min_objects", "least objects of a frame"),
            "--max-objects": ("max_objects", "most objects of a frame"),
            "--nearest": ("nearest", "metres to the nearest objects"),
            "--farthest": ("farthest", "metres to the farthest"),
            "--overlap": ("overlap", "share of an object that another may hide"),
            "--size-sigma": ("size_sigma", "share by which sizes stray"),
            "--label-range": ("label_range", "metres; what is farther is DontCare"),
            "--min-visible-pixels": ("min_visible_pixels", "what shows less is DontCare"),
        },
    ),
}
DIFFICULTY_FIELDS = {*PRESETS["easy"], *KITTI_PRESETS["easy"]}


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
    """The command line; what is not given is None, and has the default of the format's configuration."""
    parser = argparse.ArgumentParser(
        description="Make a synthetic world in nuScenes v1.0 or in KITTI layout: for tests, not a benchmark."
    )
    parser.add_argument("--out", required=True, help="root folder of the dataset")
    parser.add_argument("--format", choices=list(FORMATS), default="nuscenes", help="default: %(default)s")
    parser.add_argument("--difficulty", choices=list(PRESETS), default="easy", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="processes; the files do not depend on them")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a synthetic world of another configuration"
    )
    both = parser.add_argument_group("both formats")
    both.add_argument("--seed", type=int, help=f"default: {WorldConfig().seed}")
    both.add_argument("--image-size", type=parse_size, metavar="WxH", help="default: the format's")
    both.add_argument("--distractors", type=int, help="default: the difficulty's")
    both.add_argument("--hue-sigma", type=float, help="default: the difficulty's")
    for layout, (kind, options) in FORMATS.items():
        group, preset = parser.add_argument_group(f"--format {layout}"), kind.preset("easy")
        for flag, (field, meaning) in options.items():
            default = getattr(preset, field)
            shown = "the difficulty's" if field in DIFFICULTY_FIELDS else default
            group.add_argument(flag, type=type(default), dest=field, help=f"{meaning}; default: {shown}")
    return parser


def make_config(layout: str, difficulty: str, fields: Mapping[str, Any]) -> WorldConfig | KittiWorldConfig:
    """The configuration of a layout.

    Args:
        layout: a key of FORMATS.
        difficulty: name of a preset.
        fields: that were given.

    Returns:
        The configuration.

    Raises:
        ValueError: a field is not the layout's, or out of its range.
    """
    for other, (_, options) in FORMATS.items():
        foreign = [flag for flag, (field, _) in options.items() if field in fields and other != layout]
        if foreign:
            raise ValueError(
                f"{', '.join(foreign)} given with --format {layout}, expected with --format {other} only; "
                "leave it out"
            )
    return FORMATS[layout][0].preset(difficulty, **fields)


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
    layout = fields.pop("format")
    start = time.perf_counter()
    try:
        config = make_config(layout, difficulty, fields)
        if isinstance(config, KittiWorldConfig):
            generate_kitti(config, out, workers=workers, overwrite=overwrite)
            found = f"KITTI layout, splits {', '.join(config.splits())}"
        else:
            generate(config, out, workers=workers, overwrite=overwrite)
            found = f"version {config.version}, splits {', '.join(config.splits())}"
    except (ValueError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {found}; {time.perf_counter() - start:.1f} s")
    return 0
