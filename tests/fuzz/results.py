"""nuScenes results files: a small valid one, how the commands read it, and what is right."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from bevkd2.data.nuscenes.dataset import load_nuscenes
from bevkd2.data.stored.nuscenes import NuScenesStoredFrames
from bevkd2.evaluation.nuscenes_results import SampleDetections, read_results, write_results
from bevkd2.evaluation.nuscenes_scenes import NuScenesScenes
from bevkd2.nuscenes.layout import CLASS_NAMES
from tests.data.nuscenes_fixture import VERSION, FixtureWorld
from tests.fuzz import reference
from tests.fuzz.validity import Result, same_shape, strict_json

_SPLIT, _EXTENT = "both", (-51.2, -51.2, 51.2, 51.2)


@functools.lru_cache(maxsize=1)  # the tables are not mutated
def _frames(folder: Path) -> NuScenesStoredFrames:
    index = load_nuscenes(folder, VERSION, _SPLIT, str(folder / "cache"))
    return NuScenesStoredFrames(str(folder), VERSION, index, _EXTENT)


def write_results_file(folder: Path) -> None:
    """The objects of a small world as detections."""
    FixtureWorld(folder, scenes=2, frames=2)
    index = load_nuscenes(folder, VERSION, _SPLIT, str(folder / "cache"))
    detections = {}
    for i, frame in enumerate(index):
        boxes = index.boxes3d(i)
        boxes.tensor[:, 7:] = boxes.tensor[:, 7:].nan_to_num()
        detections[frame["sample_token"]] = SampleDetections(
            boxes=boxes,
            scores=np.linspace(0.9, 0.5, len(boxes)),
            labels=index.labels[index.annotations(i)],
            lidar2global=index.lidar2global[i],
            ego2global=index.ego2global[i],
        )
    write_results(folder / "results_nusc.json", detections, dict.fromkeys(CLASS_NAMES, 99.0))


def read_results_file(folder: Path) -> Result:
    """The detections as figures and reports draw them, and the score with and without each scene."""
    scorer = NuScenesScenes(root=str(folder), version=VERSION, split=_SPLIT)
    scores = vars(scorer.score(folder, ["mAP", "NDS"], ["AP_car"]))
    frames = _frames(folder)
    drawn = dict(zip(frames.names, frames.read(folder), strict=True))
    pairs = {
        token: sorted(zip(found.scores.tolist(), found.labels.tolist(), strict=True))
        for token, found in drawn.items()
        if found.scores is not None
    }
    return {
        "boxes": {token: found.boxes for token, found in drawn.items()},
        "scores": scores,
        "content": {"results": read_results(folder / "results_nusc.json"), "drawn": pairs},
    }


def are_results(old: bytes, new: bytes) -> bool:
    """Whether there are other values, or more or fewer detections, but the same samples and fields."""
    try:
        trees: list[Any] = [strict_json(data.removeprefix(b"\xef\xbb\xbf"))["results"] for data in (old, new)]
        row = next(row for rows in trees[0].values() for row in rows)
        return trees[0].keys() == trees[1].keys() and all(
            same_shape(row, found) for rows in trees[1].values() for found in rows
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def expected_results(folder: Path) -> Result:
    return reference.nuscenes_results(folder, VERSION)
