"""Backbones of the shipped students can be traced; benchmarks/export_sizes.py exports the whole students."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.export_sizes import model_config
from bevkd2.config import load_config
from bevkd2.d2 import build_model
from bevkd2.modeling import Detector
from tests.configs.shipped import CONFIGS

STUDENTS = {
    "ResNet-18": "distill/nuscenes_r101_r18",
    "DLA-34": "distill/kitti_dla60_dla34",
    "MobileNetV2": "distill/kitti_r101_mobilenetv2",
    "ShuffleNetV2": "distill/kitti_r101_shufflenetv2",
    "RegNetX-800MF": "distill/kitti_regnetx32_regnetx08",
}
"""Every backbone of a student -> a config."""


class ImagePart(nn.Module):
    """Backbone and neck."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.backbone, self.neck = detector.image_backbone, detector.neck

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.neck(self.backbone(images)))


@pytest.mark.parametrize("name", STUDENTS.values(), ids=STUDENTS)
def test_backbones_are_traced_with_a_free_batch(name: str) -> None:
    """The program has operators of torch and torchvision alone."""
    part = ImagePart(build_model(model_config(load_config(CONFIGS / f"{name}.yaml")))).eval()
    images, batch = torch.rand(3, 3, 64, 96), torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(part, (images,), dynamic_shapes=({0: batch},))
        expected, outputs = part(images[:2]), program.module()(images[:2])
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    others = {
        name for name in targets if not name.startswith(("aten.", "torchvision.", "<built-in function"))
    }
    assert not others
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)
