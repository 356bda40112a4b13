"""Options and loading of stored detections, for the commands that draw without a model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bevkd2.config import CfgNode
from bevkd2.data import data_format
from bevkd2.data.loader import first_test_split
from bevkd2.data.stored import StoredFrames
from bevkd2.engine.defaults import add_import_option
from bevkd2.engine.options import finite_number

_INFERENCE = "inference"


def add_options(parser: argparse.ArgumentParser, *, least: int) -> None:
    """Adds the config, the folders of detections, the threshold and the options of the config.

    Args:
        parser: of the command.
        least: how many models the command needs.
    """
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="config that names the data: DATASETS"
    )
    add_import_option(parser)
    parser.add_argument(
        "--detections",
        action="append",
        required=True,
        metavar="NAME=FOLDER",
        help=f"a model and the run's OUTPUT_DIR, or the folder that `bevkd2 eval` wrote; repeat it, {least} "
        "or more",
    )
    parser.add_argument("--score-thresh", type=finite_number, default=0.3, help="least score of a detection")


def open_split(cfg: CfgNode) -> StoredFrames:
    """Returns the frames of the first split of DATASETS.TEST.

    Raises:
        ValueError: there is none, or the format does not read stored detections.
    """
    return data_format(cfg).stored_frames(cfg, first_test_split(cfg))


def read_detections(
    cfg: CfgNode, frames: StoredFrames, words: Sequence[str], *, least: int
) -> dict[str, Sequence[Any]]:
    """Reads the detections that the command line names.

    Args:
        cfg: the config.
        frames: the split.
        words: NAME=FOLDER of each model.
        least: how many models are needed.

    Returns:
        Name -> detections of each frame, in the order of the words.

    Raises:
        FileNotFoundError: there are no detections.
        ValueError: a word that is not understood, a name twice, or too few models.
    """
    folders: dict[str, Path] = {}
    for word in words:
        name, _, folder = word.partition("=")
        if not (name and folder):
            raise ValueError(f"--detections {word!r}: expected NAME=FOLDER")
        if name in folders:
            raise ValueError(f"--detections {word!r}: there is a model {name!r} already; use another name")
        folders[name] = _inference_folder(Path(folder), cfg)
    if len(folders) < least:
        raise ValueError(f"--detections names {len(folders)} models, expected {least} at least; repeat it")
    return {name: frames.read(folder) for name, folder in folders.items()}


def _inference_folder(folder: Path, cfg: CfgNode) -> Path:
    """Returns where the files are: in a run's folder below inference; several splits have a folder each.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--detections: {folder} is not a folder; name a run's OUTPUT_DIR after `bevkd2 eval` or `train`"
        )
    for part in (Path(_INFERENCE, cfg.DATASETS.TEST[0]), Path(_INFERENCE), Path(cfg.DATASETS.TEST[0])):
        if (folder / part).is_dir():
            return folder / part
    return folder
