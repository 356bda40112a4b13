"""A BEVFormer small enough to run in milliseconds, and samples for it."""

from __future__ import annotations

import math
from typing import Any

import torch

import bevkd2.modeling  # noqa: F401  (registers the meta-architectures)
from bevkd2.config import CfgNode, get_cfg
from bevkd2.structures import Boxes3D

CAMERAS = 6
SIZE = (32, 64)  # height, width in pixels


def tiny_bevformer_cfg(*options: Any) -> CfgNode:
    """The config of a tiny BEVFormer without frozen layers, with overrides KEY, VALUE, ..."""
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu"),
            *("MODEL.RESNETS.DEPTH", 10, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.BACKBONE.FREEZE_AT", 0),
            *("MODEL.RESNETS.OUT_FEATURES", ["res4"], "MODEL.FPN.IN_FEATURES", ["res4"]),
            *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.GRID_MASK.ENABLED", False),
            *("MODEL.BEVFORMER.NUM_HEADS", 2),
            *("MODEL.BEVFORMER.FFN_DIM", 16, "MODEL.BEVFORMER.DROPOUT", 0.0),
            *("MODEL.BEVFORMER.BEV_SHAPE", [6, 8], "MODEL.BEVFORMER.NUM_QUERIES", 12),
            *("MODEL.BEVFORMER.ENCODER_LAYERS", 2, "MODEL.BEVFORMER.DECODER_LAYERS", 2),
            *options,
        ]
    )
    return cfg


def make_frame(seed: int, time: int) -> dict[str, Any]:
    """One key frame of a scene, reproducible by its seed and its time."""
    generator = torch.Generator().manual_seed(1000 * seed + time)
    matrices = []
    for camera in range(CAMERAS):
        yaw = camera * math.pi / 3 + 0.1 * seed
        # A camera 1.5 m above the ground that looks along (cos yaw, sin yaw), 70 degrees wide.
        rotation = torch.tensor(
            [[math.sin(yaw), -math.cos(yaw), 0.0], [0.0, 0.0, -1.0], [math.cos(yaw), math.sin(yaw), 0.0]]
        )
        intrinsic = torch.tensor([[45.0, 0.0, SIZE[1] / 2], [0.0, 45.0, SIZE[0] / 2], [0.0, 0.0, 1.0]])
        matrix = torch.eye(4)
        matrix[:3, :3] = intrinsic @ rotation
        matrix[:3, 3] = intrinsic @ rotation @ torch.tensor([0.0, 0.0, 0.3])
        matrices.append(matrix)
    can_bus = torch.zeros(18, dtype=torch.float64)
    can_bus[0] = 3.0 * time
    can_bus[3] = 1.0
    return {
        "sample_id": f"sample-{seed}-{time}",
        "scene_token": f"scene-{seed}",
        "timestamp": 500_000 * time,
        "images": torch.randint(0, 256, (CAMERAS, 3, *SIZE), dtype=torch.uint8, generator=generator),
        "lidar2img": torch.stack(matrices),
        "can_bus": can_bus,
        "lidar2global": torch.eye(4, dtype=torch.float64),
        "ego2global": torch.eye(4, dtype=torch.float64),
    }


def make_frames(*seeds: int) -> list[dict[str, Any]]:
    """A batch: one training sample per seed, that of seed 0 without history."""
    batch = []
    for seed in seeds:
        sample = make_frame(seed, 1)
        sample["history"] = [make_frame(seed, 0)] if seed else []
        generator = torch.Generator().manual_seed(seed)
        boxes = torch.rand(4, 9, generator=generator) * 2 + 1
        boxes[:, :2] = torch.rand(4, 2, generator=generator) * 60 - 30
        sample["boxes"] = Boxes3D(boxes)
        sample["labels"] = torch.randint(0, 10, (4,), generator=generator)
        batch.append(sample)
    return batch
