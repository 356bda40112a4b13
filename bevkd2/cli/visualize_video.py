"""Writes scenes as MP4 videos, the models side by side, from detections on disk.

Multi-view: all cameras and the scene from above. Monocular: the image and the scene from above; images that
are not of scenes (KITTI's) become one video, in the order of the split. Needs PyAV: pip install "av>=14".
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bevkd2.cli.paths import file_name, path_to_write
from bevkd2.cli.stored_detections import add_options, open_split, read_detections
from bevkd2.data.stored import Scene, StoredFrames
from bevkd2.engine.defaults import load_args
from bevkd2.engine.options import ConfigArgumentParser, finite_number
from bevkd2.visualization.comparison_view import comparison_figure, detection_panel
from bevkd2.visualization.objects import Image
from bevkd2.visualization.video import write_video

DEFAULT_RATE = 2.0
"""Frames per second of images without times: nuScenes' rate of key frames."""

_EPILOG = """
Examples:

The first scene of the split, teacher and student side by side, after `bevkd2 eval` of both:
    $ bevkd2 visualize video --config-file configs/demo/student.yaml --output videos \\
        --detections teacher=output/teacher --detections student=output/student

Two named scenes, twice as fast as they were recorded:
    $ bevkd2 visualize video --config-file configs/demo/student.yaml --output videos --fps 4 \\
        --detections student=output/student --scene scene-0003 --scene scene-0012
"""


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = ConfigArgumentParser(
        description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, least=1)
    parser.add_argument(
        "--output", type=path_to_write, required=True, metavar="DIR", help="gets <scene>.mp4 of each scene"
    )
    parser.add_argument(
        "--scene",
        action="append",
        default=[],
        metavar="NAME",
        help="a scene of the split; by default the first; may be repeated",
    )
    parser.add_argument(
        "--fps",
        type=finite_number,
        default=None,
        metavar="RATE",
        help=f"frames per second; by default those of the scene's key frames, or {DEFAULT_RATE:g}",
    )
    parser.add_argument("--width", type=int, default=640, help="pixels of a model's part of the picture")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="options of the config as KEY VALUE pairs")
    return parser


def choose_scenes(frames: StoredFrames, names: Sequence[str]) -> list[Scene]:
    """Returns the named scenes; the split's first where none is named.

    Args:
        frames: the split.
        names: of scenes, in the order in which they are returned.

    Raises:
        ValueError: the split has no scene of a name.
    """
    scenes = {scene.name: scene for scene in frames.scenes()}
    if unknown := [name for name in names if name not in scenes]:
        shown = ", ".join(list(scenes)[:5]) + (", ..." if len(scenes) > 5 else "")
        raise ValueError(f"--scene {unknown[0]!r}: not one of the {len(scenes)} scenes of the split: {shown}")
    return [scenes[name] for name in names] or list(scenes.values())[:1]


def scene_pictures(
    frames: StoredFrames,
    found: Mapping[str, Sequence[Any]],
    scene: Scene,
    *,
    score_threshold: float,
    width: int,
    extent: tuple[float, float, float, float],
) -> Iterator[Image]:
    """Draws the frames of a scene, one after the other.

    Args:
        frames: the split.
        found: model -> detections of each frame of the split.
        scene: what to draw.
        score_threshold: least score of a drawn detection.
        width: of a model's part in pixels.
        extent: x0, y0, x1, y1 of the view from above, metres, in all frames.
    """
    for number, i in enumerate(scene.frames, start=1):
        view, truth = dataclasses.replace(frames.view(i), extent=extent), frames.truth(i)
        panels = [
            detection_panel(
                view,
                truth,
                frames.drawn(detections[i]),
                caption=f"{name}, score >= {score_threshold:g}",
                class_names=frames.class_names,
                score_threshold=score_threshold,
                width=width,
            )
            for name, detections in found.items()
        ]
        yield comparison_figure(panels, f"{scene.name}, {number} of {len(scene.frames)}: {frames.names[i]}")


def run(args: argparse.Namespace) -> list[Path]:
    """Writes the videos; returns the files."""
    if args.width < 100:
        raise ValueError(f"--width is {args.width}, expected at least 100")
    if args.fps is not None and args.fps <= 0:
        raise ValueError(f"--fps is {args.fps}, expected frames per second above 0")
    cfg = load_args(args)
    frames = open_split(cfg)
    scenes = choose_scenes(frames, args.scene)
    found = read_detections(cfg, frames, args.detections, least=1)
    written = []
    for scene in scenes:
        # Pictures of a video have one size.
        extent = widest_extent([frames.extent(i) for i in scene.frames])
        pictures = scene_pictures(
            frames, found, scene, score_threshold=args.score_thresh, width=args.width, extent=extent
        )
        written.append(args.output / f"{file_name(scene.name)}.mp4")
        write_video(
            written[-1], tqdm(pictures, total=len(scene.frames), desc=scene.name), rate_of(scene, args.fps)
        )
    return written


def rate_of(scene: Scene, wanted: float | None) -> float:
    """Returns the frame rate of a scene's video: the wanted one, the scene's own, or the default."""
    return wanted or scene.rate or DEFAULT_RATE


def widest_extent(
    extents: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Returns the smallest extent that holds all of the given ones.

    Args:
        extents: x0, y0, x1, y1 in metres each; one at least.
    """
    x0, y0, x1, y1 = zip(*extents, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, writes, and prints the files; returns the exit status."""
    for path in run(build_parser().parse_args(argv)):
        print(path)
    return 0
