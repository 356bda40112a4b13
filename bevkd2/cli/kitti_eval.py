"""Scores KITTI detection files as the official evaluation does: AP|R40, AP|R11 and AOS, in percent.

    bevkd2 kitti-eval --gt data/kitti/training --det output/pgd/inference
    bevkd2 kitti-eval --gt data/kitti/training --det results --split data/kitti/ImageSets/val.txt

Files are those in the first that exists of DIR/label_2, DIR/data and DIR itself for --gt, and of DIR/data,
DIR/label_2 and DIR itself for --det. Without --split, the frames are those with a detection file, as in the
official tool; with it, every frame that it lists must have one (an empty one where nothing was found), and no
other frame may.

JSON: AP_R40, AP_R11 and AOS_R40, each keyed class/metric/difficulty (metrics bbox, bev, 3d). Classes without
a detection are in none of them, their keys are listed in not_evaluated; a score that is not defined (0 / 0)
is null. AOS_R40 is empty where a detection has alpha -10. objects, keyed class/difficulty, says how many
objects are labelled, how many of them count, and why the others do not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bevkd2.cli.paths import path_to_write
from bevkd2.kitti.ap import kitti_scores, to_json, to_object_table, to_table, why_zero
from bevkd2.kitti.files import find_frames, read_frame_list


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gt", type=Path, required=True, metavar="DIR", help="label files, 15 columns")
    parser.add_argument("--det", type=Path, required=True, metavar="DIR", help="detection files, 16 columns")
    parser.add_argument("--split", type=Path, metavar="FILE", help="frames, one per line (ImageSets/val.txt)")
    parser.add_argument("--json", type=path_to_write, metavar="OUT", help="write the scores there, too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Scores, prints and writes; returns the exit status.

    Raises:
        OSError: a directory or a file is missing or cannot be written.
        ValueError: a file cannot be evaluated.
    """
    args = parse_args(argv)
    split = None if args.split is None else read_frame_list(args.split)
    frames = find_frames(args.gt, args.det, split, str(args.split))
    if split is None and frames.left_out:
        print(
            f"warning: {frames.left_out} frames of {frames.ground_truth_dir} have no detection file and are "
            "not counted, as in the official tool; --split makes them an error",
            file=sys.stderr,
        )
    scores = kitti_scores(*frames.read())
    print(f"{scores.images} images, percent\n{to_table(scores)}\n")
    print("objects and detections that count (others may have several reasons not to)")
    print(to_object_table(scores))
    for sentence in why_zero(scores):
        print(f"warning: {sentence}", file=sys.stderr)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(to_json(scores), indent=1, allow_nan=False) + "\n")
    return 0
