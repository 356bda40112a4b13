"""A small PGD and FCOS3D, and images with objects for them."""

from __future__ import annotations

from typing import Any

import torch

import bevkd2.modeling  # noqa: F401  (registers)
from bevkd2.config import CfgNode, get_cfg
from bevkd2.structures import CameraBoxes3D, projected_boxes2d

HEIGHT, WIDTH, FOCAL = 64, 96, 60.0


def small_cfg(architecture: str = "PGD", width: int = 16, nuscenes: bool = False) -> CfgNode:
    """A ResNet-10 of 8 channels, levels of stride 8 and 16, towers and branches of ``width`` channels."""
    cfg = get_cfg()
    model = cfg.MODEL
    model.DEVICE, model.META_ARCHITECTURE = "cpu", architecture
    model.RESNETS.DEPTH, model.RESNETS.STEM_OUT_CHANNELS, model.RESNETS.RES2_OUT_CHANNELS = 10, 8, 8
    model.RESNETS.OUT_FEATURES = ["res3", "res4"]
    model.BACKBONE.NORM, model.BACKBONE.FREEZE_AT = "GN", 0
    model.FPN.IN_FEATURES, model.FPN.NUM_OUTS, model.FPN.OUT_CHANNELS = ["res3", "res4"], 2, width
    cfg.DATASETS.FORMAT = "nuscenes_mono" if nuscenes else "kitti"
    head = model.FCOS3D
    head.FEATURE_CHANNELS, head.REGRESS_BOUNDS = width, [48.0]
    if nuscenes:
        head.ATTRIBUTES, head.VELOCITY, head.DEPTH_PRIORS, head.SIZE_PRIORS = 9, True, [], []
        head.LOSS.CODE_WEIGHTS = [1.0] * 9
    return cfg


def make_image(seed: int, objects: int = 3, nuscenes: bool = False) -> dict[str, Any]:
    """A random image with objects before the camera, reproducible by its seed."""
    generator = torch.Generator().manual_seed(seed)
    cam2img = torch.eye(4)
    cam2img[0, 0] = cam2img[1, 1] = FOCAL
    cam2img[0, 2], cam2img[1, 2], cam2img[0, 3] = WIDTH / 2, HEIGHT / 2, 3.0
    draws = torch.rand(objects, 9, generator=generator)
    depth = 5 + 10 * draws[:, 2]
    columns = [(draws[:, 0] - 0.5) * depth, (draws[:, 1] - 0.5) * 0.5 * depth, depth]
    columns += [1 + 3 * draws[:, 3], 1 + draws[:, 4], 1 + draws[:, 5], 6 * draws[:, 6] - 3]
    if nuscenes:
        columns += [draws[:, 7], draws[:, 8]]
    boxes = CameraBoxes3D(torch.stack(columns, dim=1))
    sample = {
        "sample_id": f"{seed:06d}",
        "image": torch.randint(0, 256, (3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8),
        "cam2img": cam2img,
        "boxes": boxes,
        "labels": torch.randint(0, 3, (objects,), generator=generator),
        "boxes2d": projected_boxes2d(boxes, cam2img, (HEIGHT, WIDTH)),
    }
    if nuscenes:
        sample["attributes"] = torch.randint(0, 9, (objects,), generator=generator)
    return sample
