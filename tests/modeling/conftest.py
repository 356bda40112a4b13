"""A tiny BEVFormer and samples for it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import bevkd2.modeling  # noqa: F401  (registers)
from bevkd2.config import CfgNode, get_cfg
from bevkd2.structures import Boxes3D

HEIGHT, WIDTH = 60, 96


@pytest.fixture
def tiny_cfg() -> CfgNode:
    """Two cameras, two levels, two encoder and decoder layers, a 9 x 12 grid (rows, columns)."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS = 10, 8, 8
    resnets.OUT_FEATURES = ["res3", "res4"]
    cfg.MODEL.BACKBONE.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "GN", 0
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.NUM_OUTS, cfg.MODEL.FPN.OUT_CHANNELS = ["res3", "res4"], 2, 16
    bev = cfg.MODEL.BEVFORMER
    bev.NUM_HEADS, bev.FFN_DIM, cfg.INPUT.CAMERAS = 2, 32, ["CAM_FRONT", "CAM_BACK"]
    bev.BEV_SHAPE, bev.ENCODER_LAYERS, bev.DECODER_LAYERS, bev.NUM_QUERIES = [9, 12], 2, 2, 12
    return cfg


def camera_matrix(yaw: float, focal: float = 60.0, height: float = 1.0) -> torch.Tensor:
    """(4, 4) projection of a camera that looks along the angle ``yaw`` of the ground plane."""
    forward = torch.tensor([math.cos(yaw), math.sin(yaw), 0.0])
    right = torch.tensor([math.sin(yaw), -math.cos(yaw), 0.0])
    matrix = torch.eye(4)
    rows = torch.stack([right, torch.tensor([0.0, 0.0, -1.0]), forward])
    matrix[:3, :3] = rows
    matrix[:3, 3] = rows @ torch.tensor([0.0, 0.0, -height])
    intrinsics = torch.eye(4)
    intrinsics[0, 0] = intrinsics[1, 1] = focal
    intrinsics[0, 2], intrinsics[1, 2] = WIDTH / 2, HEIGHT / 2
    return intrinsics @ matrix


@pytest.fixture
def make_frame() -> Callable[..., dict[str, Any]]:
    """Makes one frame of two cameras, reproducible by its seed; ``turn`` rotates the rig."""

    def make(seed: int = 0, *, scene: str = "scene", step: int = 0, turn: float = 0.0) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        can_bus = torch.rand(18, generator=generator, dtype=torch.float64)
        can_bus[:3] = torch.tensor([100.0 + 4 * step, 50.0 + seed, 0.0])
        yaw = 0.3 + 0.2 * step
        can_bus[16], can_bus[17] = yaw, math.degrees(yaw)
        return {
            "sample_id": f"sample-{scene}-{step}-{seed}",
            "scene_token": scene,
            "timestamp": 1_000_000 + 500_000 * step,
            "images": torch.randint(0, 256, (2, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8),
            "lidar2img": torch.stack([camera_matrix(math.pi / 2 + turn), camera_matrix(-math.pi / 2 + turn)]),
            "can_bus": can_bus,
        }

    return make


@pytest.fixture
def make_sample(make_frame: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Makes a training sample with ``history`` earlier frames and ``boxes`` objects."""

    def make(seed: int = 0, *, history: int = 0, boxes: int = 3, **frame: Any) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1000 + seed)
        tensor = torch.rand(boxes, 9, generator=generator)
        tensor[:, :2] = tensor[:, :2] * 60 - 30
        tensor[:, 3:6] += 1
        step = frame.pop("step", history)
        past = [make_frame(seed * 10 + i, step=step - history + i, **frame) for i in range(history)]
        return {
            **make_frame(seed, step=step, **frame),
            "history": past,
            "boxes": Boxes3D(tensor),
            "labels": torch.randint(0, 10, (boxes,), generator=generator),
        }

    return make
