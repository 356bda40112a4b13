"""Makes a synthetic world of driving scenes, in nuScenes v1.0 layout or in KITTI object layout.

Examples:
    bevkd2 make-synthetic --out data/synthetic --train-scenes 240 --val-scenes 24 --workers 2
    bevkd2 make-synthetic --format kitti --out data/kitti --train-frames 480 --val-frames 120
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

from bevkd2.cli.paths import path_to_write
from bevkd2.config import import_plugin, load_installed_plugins
from bevkd2.data import DATA_FORMAT_REGISTRY, DataFormat
from bevkd2.data.synthetic import SyntheticWorld, generate
from bevkd2.engine.defaults import add_import_option


def worlds() -> dict[str, type[SyntheticWorld]]:
    """Returns the settings class of each data format that has a generator, by the name of the format.

    Formats of plugins count if they are installed or were imported before.
    """
    load_installed_plugins()
    found = {form.name: cast(DataFormat, form).synthetic_world() for form in DATA_FORMAT_REGISTRY}
    return {name: world for name, world in found.items() if world is not None}


def parse_size(text: str) -> tuple[int, int]:
    """Parses WIDTHxHEIGHT.

    Args:
        text: for example "176x64".

    Returns:
        (width, height) in pixels.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    width, separator, height = text.lower().partition("x")
    if not (separator and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is no image size, expected WIDTHxHEIGHT such as 176x64")
    return int(width), int(height)


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line; an option that is not given is None, and has the default of the format."""
    parser = argparse.ArgumentParser(
        description="Make a synthetic world in nuScenes v1.0 or in KITTI layout: for tests, not a benchmark."
    )
    by_format = worlds()
    easy = {name: world.preset("easy") for name, world in by_format.items()}
    difficulties = list(next(iter(by_format.values())).presets)
    parser.add_argument("--out", type=path_to_write, required=True, help="root folder of the dataset")
    parser.add_argument("--format", choices=list(by_format), default="nuscenes", help="default: %(default)s")
    parser.add_argument("--difficulty", choices=difficulties, default="easy", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="processes; the files do not depend on them")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a synthetic world of other settings"
    )
    add_import_option(parser)
    every = parser.add_argument_group("all formats")
    every.add_argument("--seed", type=int, help="default: 0")
    every.add_argument("--image-size", type=parse_size, metavar="WxH", help="default: the format's")
    every.add_argument("--distractors", type=int, help="default: the difficulty's")
    every.add_argument("--hue-sigma", type=float, help="default: the difficulty's")
    for world in dict.fromkeys(by_format.values()):
        names = [name for name, other in by_format.items() if other is world]
        group = parser.add_argument_group(f"--format {' or '.join(names)}")
        for flag, (field, meaning) in world.options.items():
            default = getattr(easy[names[0]], field)
            shown = "the difficulty's" if field in world.presets["easy"] else default
            group.add_argument(flag, type=type(default), dest=field, help=f"{meaning}; default: {shown}")
    return parser


def make_config(name: str, difficulty: str, fields: Mapping[str, Any]) -> SyntheticWorld:
    """Returns the settings of a world.

    Args:
        name: of a data format that has a generator.
        difficulty: name of a preset.
        fields: those that were given.

    Raises:
        ValueError: a field is of another format, or out of its range.
    """
    by_format = worlds()
    own = {field for field, _ in by_format[name].options.values()}
    for other, world in by_format.items():
        foreign = [flag for flag, (field, _) in world.options.items() if field in fields and field not in own]
        if foreign:
            raise ValueError(
                f"{', '.join(foreign)} given with --format {name}, expected with --format {other} only; "
                "leave it out"
            )
    return by_format[name].preset(difficulty, **fields)


def main(argv: Sequence[str] | None = None, *, progress: bool = True) -> int:
    """Runs the command line.

    Args:
        argv: arguments; those of the process by default.
        progress: show a progress bar.

    Returns:
        The exit status.

    Raises:
        ValueError: a setting out of its range, or of another format.
        FileExistsError: the folder holds other files, or a world of other settings.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_import_option(first)
    for package in first.parse_known_args(argv)[0].plugins:  # they may bring formats, which are options
        import_plugin(package)
    fields = {key: value for key, value in vars(build_parser().parse_args(argv)).items() if value is not None}
    del fields["plugins"]
    out, workers = fields.pop("out"), fields.pop("workers")
    overwrite, difficulty = fields.pop("overwrite"), fields.pop("difficulty")
    name = fields.pop("format")
    start = time.perf_counter()
    config = make_config(name, difficulty, fields)
    generate(config, out, workers=workers, overwrite=overwrite, progress=progress)
    print(f"{out}: {config.describe()}; {time.perf_counter() - start:.1f} s")
    return 0
