"""The shipped teachers on worlds that no training saw: what they find, and what their history is worth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from bevkd2.cli.visualize import load_model
from bevkd2.config import CfgNode, load_config
from bevkd2.data import build_test_loader
from bevkd2.data.synthetic import KittiWorldConfig, WorldConfig, generate
from bevkd2.visualization import DrawnObjects

ROOT = Path(__file__).parents[2]
LARGEST = 10 * 2**20  # bytes


class Match(NamedTuple):
    """An annotated object with its detection: errors in rad and m/s, the true speed, number of the frame."""

    turn: float
    velocity: float
    speed: float
    frame: int


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    generate(WorldConfig.preset("easy", seed=77, num_train_scenes=0, num_val_scenes=3), root, 1)
    return root


def detected(cfg: CfgNode, weights: Path) -> tuple[list[Match], float]:
    """Returns the objects that are found within 2 m by a detection of their class, and the share of all."""
    model = load_model(cfg, str(weights))
    matches: list[Match] = []
    count, frame, scene = 0, 0, None
    for batch in build_test_loader(cfg, cfg.DATASETS.TEST[0]):
        sample = batch[0]
        frame = frame + 1 if sample.get("scene_token") == scene else 0
        scene = sample.get("scene_token")
        with torch.no_grad():
            found = DrawnObjects.from_dict(model(batch)[0]).above(0.3)
        truth = DrawnObjects.from_dict(sample)
        count += len(truth)
        for box, label in zip(truth.boxes.tensor, truth.labels, strict=True):
            boxes = found.only(found.labels == label).boxes.tensor
            apart = (boxes[:, :2] - box[:2]).norm(dim=1)
            if len(boxes) and apart.min() < 2:
                best = boxes[apart.argmin()]
                turn = abs(math.remainder(float(best[6] - box[6]), 2 * math.pi))
                errors = [float(v.norm()) for v in (best[7:9] - box[7:9], box[7:9])]
                matches.append(Match(turn, *errors, frame))
    return matches, len(matches) / count


def test_the_multi_view_teacher_finds_objects_turns_and_velocities(world: Path) -> None:
    weights = ROOT / "assets" / "demo_teacher.safetensors"
    assert weights.stat().st_size < LARGEST
    errors = {}
    for clear in (False, True):
        options = ["DATASETS.ROOT", str(world), "MODEL.DEVICE", "cpu", "MODEL.BEVFORMER.CLEAR_MEMORY", clear]
        matches, share = detected(load_config(ROOT / "configs/demo/teacher.yaml", options), weights)
        moving = [m for m in matches if m.speed > 0.5 and m.frame > 0]  # nothing moves in a single frame
        errors[clear] = np.mean([m.velocity for m in moving])
        assert share > 0.5
        assert np.median([m.turn for m in matches]) < 0.4
        speed = np.mean([m.speed for m in moving])
    assert errors[False] < 0.5 * speed
    assert errors[True] > 1.5 * errors[False]


def test_the_monocular_teacher_finds_objects_and_turns(tmp_path: Path) -> None:
    weights = ROOT / "assets" / "demo_mono_teacher.safetensors"
    assert weights.stat().st_size < LARGEST
    generate(KittiWorldConfig.preset("easy", seed=77, num_train_frames=0, num_val_frames=24), tmp_path, 1)
    options = ["DATASETS.ROOT", str(tmp_path), "MODEL.DEVICE", "cpu"]
    matches, share = detected(load_config(ROOT / "configs/demo_mono/teacher.yaml", options), weights)
    assert share > 0.5
    assert np.median([m.turn for m in matches]) < 0.4
