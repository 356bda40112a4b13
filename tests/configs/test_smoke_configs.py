"""The configs of SMOKE say what was published."""

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
def test_published_setting(name: str):
    cfg = config(name)
    smoke, affine, solver = cfg.MODEL.SMOKE, cfg.INPUT.AFFINE, cfg.SOLVER
    assert list(cfg.DATASETS.CLASSES) == ["Pedestrian", "Cyclist", "Car"]
    assert smoke.SIZE_PRIORS == [[0.88, 1.73, 0.67], [1.78, 1.70, 0.58], [3.88, 1.63, 1.53]]
    assert (smoke.DEPTH_PRIOR, smoke.MIN_OVERLAP) == ([28.01, 16.32], 0.7)
    assert pytest.approx(1 / 300) == smoke.LOSS.BOX_WEIGHT
    assert smoke.LOSS.HEATMAP_WEIGHT == 1.0
    assert (smoke.SCORE_THRESHOLD, smoke.MAX_DETECTIONS) == (0.25, 100)
    assert (affine.ENABLED, list(affine.SIZE), affine.PROB) == (True, [1280, 384], 0.3)
    assert (affine.SHIFT, list(affine.SCALE), affine.STEP) == (0.2, [0.6, 1.4], 0.1)
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.BIAS_LR_FACTOR) == ("ADAM", 2.5e-4, 2.0)
    steps = 3712 // 32  # training images over images a step
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, list(solver.STEPS)) == (32, 72 * steps, [50 * steps])
    assert not solver.CLIP_GRADIENTS.ENABLED
