"""A BEVFormer small enough to run in milliseconds, and samples for it."""

import math

import pytest
import torch

import bevkd2.modeling  # noqa: F401  (registers the meta-architectures)
from bevkd2.checkpoint import save_file
from bevkd2.config import get_cfg
from bevkd2.distill import resolve_teacher
from bevkd2.structures import Boxes3D
from tests.distill.pairs import METHODS, build

CAMERAS = 6
SIZE = (32, 64)  # height, width in pixels


@pytest.fixture
def tiny_cfg():
    """Returns a function that makes a frozen-free config of a tiny BEVFormer with overrides."""

    def make(*options):
        cfg = get_cfg()
        cfg.merge_from_list(
            [
                *("MODEL.DEVICE", "cpu"),
                *("MODEL.RESNETS.DEPTH", 10, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
                *("MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.BACKBONE.FREEZE_AT", 0),
                *("MODEL.RESNETS.OUT_FEATURES", ["res4"], "MODEL.FPN.IN_FEATURES", ["res4"]),
                *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.GRID_MASK.ENABLED", False),
                *(
                    "MODEL.BEVFORMER.NUM_HEADS",
                    2,
                ),
                *("MODEL.BEVFORMER.FFN_DIM", 16, "MODEL.BEVFORMER.DROPOUT", 0.0),
                *("MODEL.BEVFORMER.BEV_SHAPE", [6, 8], "MODEL.BEVFORMER.NUM_QUERIES", 12),
                *("MODEL.BEVFORMER.ENCODER_LAYERS", 2, "MODEL.BEVFORMER.DECODER_LAYERS", 2),
                *options,
            ]
        )
        return cfg

    return make


def _frame(seed: int, time: int) -> dict:
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
        "sample_token": f"sample-{seed}-{time}",
        "scene_token": f"scene-{seed}",
        "timestamp": 500_000 * time,
        "images": torch.randint(0, 256, (CAMERAS, 3, *SIZE), dtype=torch.uint8, generator=generator),
        "lidar2img": torch.stack(matrices),
        "can_bus": can_bus,
        "lidar2global": torch.eye(4, dtype=torch.float64),
        "ego2global": torch.eye(4, dtype=torch.float64),
    }


@pytest.fixture
def samples():
    """Returns a function that makes a batch: one training sample a seed, the first without history."""

    def make(*seeds):
        batch = []
        for seed in seeds:
            sample = _frame(seed, 1)
            sample["history"] = [_frame(seed, 0)] if seed else []
            generator = torch.Generator().manual_seed(seed)
            boxes = torch.rand(4, 9, generator=generator) * 2 + 1
            boxes[:, :2] = torch.rand(4, 2, generator=generator) * 60 - 30
            sample["boxes"] = Boxes3D(boxes)
            sample["labels"] = torch.randint(0, 10, (4,), generator=generator)
            batch.append(sample)
        return batch

    return make


@pytest.fixture
def teacher_files(tmp_path, tiny_cfg):
    """Writes a teacher's YAML and checkpoint; returns a function that makes a Distiller config."""
    torch.manual_seed(0)
    teacher = build(tiny_cfg())
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if ".attention_weights." in name:  # zero at the start, which makes all attention uniform
                parameter.normal_()
    save_file({"model": teacher.state_dict()}, tmp_path / "teacher.pth")
    (tmp_path / "teacher.yaml").write_text(tiny_cfg().dump())

    def make(*options, mode="freeze"):
        cfg = tiny_cfg()
        cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "Distiller"])
        cfg.DISTILL.TEACHER.CONFIG = str(tmp_path / "teacher.yaml")
        cfg.DISTILL.TEACHER.WEIGHTS = str(tmp_path / "teacher.pth")
        cfg.DISTILL.METHODS = METHODS
        cfg.DISTILL.INHERIT.MODE = mode
        cfg.merge_from_list(options)
        resolve_teacher(cfg)
        return cfg

    return make
