"""The configs of SMOKE meet the published numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bevkd2.modeling  # noqa: F401  (registers the models)
from bevkd2.config import CfgNode, load_config
from bevkd2.d2 import build_model

CONFIGS = Path(__file__).parents[2] / "configs" / "smoke"
# mmdetection3d's SMOKE has 19,510,443, of which projections at levels 3 and 4 are never read.
PUBLISHED = 19_510_443 - (64 * 128 + 2 * 128) - (128 * 256 + 2 * 256)


def config(name: str) -> CfgNode:
    cfg = load_config(CONFIGS / f"{name}.yaml")
    cfg.MODEL.DEVICE = "meta"
    return cfg


def test_published_number_of_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in build_model(config("smoke_dla34_kitti")).parameters()) == PUBLISHED


@pytest.mark.parametrize(("name", "channels"), [("smoke_dla34_kitti", 64), ("smoke_dla60_kitti", 128)])
def test_one_map_of_stride_4(name: str, channels: int):
    with torch.device("meta"):
        (level,) = build_model(config(name)).feature_shapes().fpn
    assert (level.stride, level.channels) == (4, channels)


@pytest.mark.parametrize("name", ["smoke_dla34_kitti", "smoke_dla60_kitti"])
def test_published_schedule(name: str):
    """mmdetection3d: 72 epochs of 3,712 images, 32 per step, Adam at 2.5e-4, a drop after 50 epochs."""
    solver = config(name).SOLVER
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.IMS_PER_BATCH) == ("ADAM", 2.5e-4, 32)
    steps_per_epoch = 3712 // 32
    assert (solver.MAX_ITER, list(solver.STEPS)) == (72 * steps_per_epoch, [50 * steps_per_epoch])
