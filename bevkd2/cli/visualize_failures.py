"""Lists and draws the frames in which models lose most against a reference, from detections on disk.

Open index.html in the folder of --output to sort and filter the frames; failures.json has its numbers.

The first model of --detections is the reference (a teacher). An object that it finds and another model does
not is missed by that one, or far, where a detection of its class is near; detections that find nothing are
false. A match is that of the data set's evaluation: nuScenes' true positives (centres within 2 m), KITTI's
IoU in 3D (0.7 for cars, else 0.5; objects that count at hard).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from bevkd2.cli.paths import path_to_write
from bevkd2.cli.stored_detections import add_options, open_split, read_detections
from bevkd2.data.stored import StoredFrames
from bevkd2.engine.defaults import load_args
from bevkd2.engine.options import ConfigArgumentParser, finite_number
from bevkd2.evaluation.failures import SORT_KEYS, failure_table, rank_frames, summary
from bevkd2.report.failures import render_failures
from bevkd2.structures.matches import FOUND, FrameMatches
from bevkd2.visualization import save_image
from bevkd2.visualization.comparison_view import comparison_figure, match_panel
from bevkd2.visualization.objects import Image

_EPILOG = """
Examples:

The frames in which a student loses most against its teacher, after `bevkd2 eval` of both:
    $ bevkd2 visualize failures --config-file configs/demo/student.yaml --output failures \\
        --detections teacher=output/teacher --detections student=output/student

What distillation changed, by the objects that the plain student misses:
    $ bevkd2 visualize failures --config-file configs/demo/student.yaml --output failures --sort missed \\
        --detections distilled=output/distill --detections student=output/student
"""


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = ConfigArgumentParser(
        description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, least=2)
    parser.add_argument(
        "--output",
        type=path_to_write,
        required=True,
        metavar="DIR",
        help="gets failures.json, pictures, and index.html with both",
    )
    parser.add_argument("--num", type=int, default=8, help="frames to draw")
    parser.add_argument(
        "--compare", default="", metavar="NAME", help="the model whose losses sort; by default the second"
    )
    parser.add_argument("--sort", choices=SORT_KEYS, default="loss", help="what frames are sorted by")
    parser.add_argument(
        "--match",
        type=finite_number,
        default=None,
        metavar="LIMIT",
        help="what a match must meet instead: metres (nuScenes), IoU in 3D of all classes (KITTI)",
    )
    parser.add_argument(
        "--far",
        type=finite_number,
        default=4.0,
        metavar="METRES",
        help="an object with a false detection of its class at most so far away is far, not missed",
    )
    parser.add_argument("--width", type=int, default=720, help="pixels of a model's part of a picture")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="options of the config as KEY VALUE pairs")
    return parser


def match_models(
    frames: StoredFrames,
    found: Mapping[str, Sequence[Any]],
    *,
    score_threshold: float,
    limit: float | None,
    far: float,
) -> dict[str, list[FrameMatches]]:
    """Matches every frame of every model with the annotations.

    Args:
        frames: the split.
        found: model -> the detections of each frame, as ``frames.read`` returns them.
        score_threshold, limit, far: see ``StoredFrames.match``.

    Returns:
        Model -> the matches of each frame.
    """
    return {
        name: [
            frames.match(i, there, score_threshold=score_threshold, limit=limit, far=far)
            for i, there in enumerate(tqdm(detections, desc=name))
        ]
        for name, detections in found.items()
    }


def draw_frame(
    frames: StoredFrames,
    found: Mapping[str, Sequence[Any]],
    matches: Mapping[str, Sequence[FrameMatches]],
    i: int,
    *,
    title: str,
    width: int,
) -> Image:
    """Draws a frame of all models.

    Rings are around objects that the reference finds and a model does not.

    Args:
        frames: the split.
        found: model -> the detections of each frame.
        matches: model -> the matches of each frame; the first model is the reference.
        i: the frame.
        title: above the picture.
        width: of each model's panel in pixels.

    Returns:
        (H, W, 3) RGB.
    """
    view, truth = frames.view(i), frames.truth(i)
    reference = next(iter(matches.values()))[i]
    panels = [
        match_panel(
            view,
            truth,
            frames.drawn(found[name][i]),
            there[i],
            caption=f"{name}: {summary(there[i])}",
            width=width,
            marked=np.flatnonzero((reference.objects == FOUND) & (there[i].objects != FOUND)).tolist(),
        )
        for name, there in matches.items()
    ]
    return comparison_figure(panels, title)


def run(args: argparse.Namespace) -> list[Path]:
    """Compares the models; returns the files that were written: the page, the table, the pictures."""
    for name, value, least in (("--num", args.num, 0), ("--width", args.width, 100), ("--far", args.far, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    if args.match is not None and args.match <= 0:
        raise ValueError(f"--match is {args.match}, expected a number above 0")
    cfg = load_args(args)
    frames = open_split(cfg)
    found = read_detections(cfg, frames, args.detections, least=2)
    reference, *others = found
    compared = args.compare or others[0]
    if compared not in others:
        raise ValueError(f"--compare {compared!r}: expected one of {', '.join(others)}")
    matches = match_models(frames, found, score_threshold=args.score_thresh, limit=args.match, far=args.far)
    order = rank_frames(matches, compared, args.sort)
    table = failure_table(matches, frames.names, frames.class_names, order)
    head = {
        **{"split": cfg.DATASETS.TEST[0], "compared": compared, "sorted_by": args.sort},
        **{"score_threshold": args.score_thresh, "match": args.match, "far": args.far},
    }
    written = [args.output / "index.html", args.output / "failures.json"]
    sizes: dict[str, tuple[int, int]] = {}
    for rank, entry in enumerate(tqdm(table["frames"][: args.num], desc="pictures")):
        loss = entry["losses"][compared]
        title = (
            f"{entry['frame']}: {compared} against {reference}: {loss['missed']} missed, {loss['far']} far, "
            f"{loss['false']} more false, {loss['gained']} gained"
        )
        picture = draw_frame(frames, found, matches, entry["place"], title=title, width=args.width)
        written.append(args.output / f"{rank:03d}_{entry['frame'].replace('/', '_')}.png")
        save_image(written[-1], picture)
        entry["picture"] = written[-1].name
        sizes[written[-1].name] = (picture.shape[1], picture.shape[0])
    args.output.mkdir(parents=True, exist_ok=True)
    written[1].write_text(json.dumps({**head, **table}, indent=1, allow_nan=False) + "\n")
    written[0].write_text(render_failures({**head, **table}, sizes), encoding="utf-8")
    print(_text_of(table, compared))
    return written


def _text_of(table: Mapping[str, Any], compared: str) -> str:
    """Returns the counts of the models, by class, and the frames with the greatest losses, as text."""
    columns = ("objects", "found", "far", "missed", "false", "error")
    rows = [
        [model, name, *(counts[column] for column in columns)]
        for model, of_model in table["models"].items()
        for name, counts in (("all", of_model), *of_model["per_class"].items())
    ]
    models = tabulate(rows, headers=["model", "class", *columns[:-1], "error (m)"])
    losses = ("loss", "missed", "far", "false", "gained", "error")
    worst = [
        [entry["frame"], *(entry["losses"][compared][key] for key in losses)]
        for entry in table["frames"][:10]
    ]
    frames = tabulate(worst, headers=["frame", *losses[:-1], "error (m)"], disable_numparse=[0])
    return f"{models}\n\nWhat {compared} loses against {table['reference']}:\n{frames}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, compares, and prints tables and files; returns the exit status."""
    for path in run(build_parser().parse_args(argv)):
        print(path)
    return 0
